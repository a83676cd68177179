"""The toy world, with this plugin and the searches that it stands beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import misfits
import pytest

from t2ialign import plugins
from t2ialign.testing import installed, write_spec
from t2ialign_dav import plugin as dav
from t2ialign_reno import plugin as reno
from t2ialign_search import plugin

NOISY = {"kind": "toy-steps", "steps": 5, "fresh": 0.7}
#: Every kind with options for the toy world, and the sampler that it is tried with.
SEARCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fk": ({"kind": "fk-steering", "particles": 4, "lmbda": 20.0}, NOISY),
    "evo": (
        {"kind": "evo-search", "population_size_schedule": [5, 4, 4, 4, 4], "elite_size": 2},
        NOISY,
    ),
    "evo-noise": (
        {"kind": "evo-search", "population_size_schedule": [5, 4, 4], "elite_size": 2},
        {"kind": "toy-steps"},
    ),
    "zero-order": ({"kind": "zero-order", "neighbours": 3}, {"kind": "toy-steps"}),
}


@pytest.fixture
def registry() -> Iterator[plugins.Registry]:
    with installed(misfits, plugin, reno, dav) as found:
        yield found


@pytest.fixture
def toy_spec(tmp_path: Path, registry: plugins.Registry) -> Callable[..., Path]:
    """Write a spec of the toy world for one of ``SEARCHES``; keyword arguments update tables."""

    def write(search: str, **tables: Any) -> Path:
        optimizer, sampler = SEARCHES[search]
        tree: dict[str, Any] = {
            "run": {"steps": 9, "out": str(tmp_path / "runs"), "checkpoint_every": 1},
            "backend": {"kind": "toy-flow", "checkpoint": "some/model", "dtype": "float32"},
            "sampler": sampler,
            "optimizer": optimizer,
            "reward": [{"kind": "toy-redness"}, {"kind": "toy-darkness", "weight": 0.0}],
            "prompts": {"file": "prompts.txt", "per_step": 2, "images_per_prompt": 1},
            "samples": {"every": 0},
        }
        for name, table in tables.items():
            tree[name] = {**tree.get(name, {}), **table} if isinstance(table, dict) else table
        return write_spec(tmp_path, **tree)

    return write
