"""EGGROLL aligns the tiny trained VAR: the autoregressive counterpart of the quickstart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs

SPEC = Path(__file__).parents[2] / "specs" / "eggroll-var-shapes.toml"
pytestmark = pytest.mark.slow


def test_the_detector_gains_on_held_out_seeds(tmp_path: Path) -> None:
    """Three eighths of the shipped run's images are enough to show it."""
    shorter = ["run.steps=30", "prompts.images_per_prompt=1", "evaluation.images_per_prompt=16"]
    run = runner.start(specs.load(SPEC, [*shorter, f'run.out="{tmp_path}"']), Display(quiet=True))
    tuned = json.loads((run.path / "evaluation" / "summary.json").read_text())["paired"]["tuned"]
    for reward in ("shapes-graded", "shapes-exact"):
        assert tuned[reward]["difference"] >= 3 * tuned[reward]["se"], reward
    card = (run.path / "export" / "README.md").read_text()
    assert "library_name: t2ialign" in card
    assert "VarBackend" in card
