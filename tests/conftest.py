"""Shared fixtures: a toy world that needs no weights, and a cache that never touches the user's."""

from __future__ import annotations

import logging
import os
import tempfile

# One thread per test process, and per process that a test starts: pytest -n already uses the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Commands that tests start find the sources compiled, as a user's do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import misfits
import pytest

from t2ialign.plugins import Registry
from t2ialign.testing import installed, write_spec

# pytest would keep every line of what torch.compile traces, which takes longer than compiling.
logging.getLogger("torch.__trace").propagate = False


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU: torch.cuda.is_available() is false")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt embeddings of tests stay in a temporary folder, shared within one test process."""
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # else what the first test sets would stay
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "t2ialign-tests-compiled"))


@pytest.fixture
def shelved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offloading that shows on a CPU: weights are halved while they wait, and doubled when they are fetched.

    A forward or backward pass that uses weights which it did not fetch gives wrong numbers; so does one that uses a
    copy after it was dropped, which turns to NaN. Returns the elements that each fetched unit held, in order.
    """
    from t2ialign_diffusers.offload import TakingTurns

    held: list[int] = []
    put_back = TakingTurns.put_back

    def poisoned(self: TakingTurns) -> None:
        dropped = [parameter.data for parameter, _ in self.fetched]
        put_back(self)
        for copy in dropped:
            copy.fill_(float("nan"))
        if dropped:
            held.append(sum(copy.numel() for copy in dropped))

    monkeypatch.setattr(TakingTurns, "put_back", poisoned)
    monkeypatch.setattr(TakingTurns, "home", lambda self, weight: weight * 0.5)
    monkeypatch.setattr(TakingTurns, "fetch", lambda self, home: home * 2)
    return held


@pytest.fixture
def toy_registry() -> Iterator[Registry]:
    """Only the toy plugin, and parts that fit badly, are installed."""
    with installed(misfits) as found:
        yield found


@pytest.fixture
def toy_spec(tmp_path: Path, toy_registry: Registry) -> Callable[..., Any]:
    """Write a toy spec file; keyword arguments replace whole tables."""
    return partial(write_spec, tmp_path)
