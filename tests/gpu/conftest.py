"""What runs on a GPU, in bodies that run on a CPU as well, in sizes that a CPU has: so that none rots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import WORLD

from t2ialign.spec import parse as specs


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def load(tmp_path: Path, device: torch.device) -> Callable[..., Any]:
    """load(*overrides) -> the spec of the smallest real run on the device."""
    path = tmp_path / "spec.toml"
    path.write_text(WORLD.replace("OUT", str(tmp_path)))
    short = (f"run.device='{device}'", "evaluation.limit=2", "evaluation.every=0", "samples.count=2")
    return lambda *overrides: specs.load(path, [*short, *overrides])
