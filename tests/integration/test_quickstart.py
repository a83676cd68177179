"""The project's main job, as the README promises it: the quickstart gains, and a meaningless reward does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def paired(spec: str, out: Path, *overrides: str) -> dict[str, dict[str, float]]:
    """Run a spec and return tuned against base, reward by reward."""
    run = runner.start(
        specs.load(ROOT / spec, [f'run.out="{out}"', "evaluation.save_images=false", *overrides]), Display(quiet=True)
    )
    summary = json.loads((run.path / "evaluation" / "summary.json").read_text())
    assert summary["images"] == 3 * summary["prompts"]
    return summary["paired"]["tuned"]


def standard_errors(result: dict[str, float]) -> float:
    return result["difference"] / result["se"] if result["difference"] else 0.0  # no step: the same images


def test_the_quickstart_gains_on_held_out_prompts(tmp_path):
    tuned = paired("specs/quickstart.toml", tmp_path)
    assert next(iter(tuned)) == "clip"  # the optimised reward comes first
    assert standard_errors(tuned["clip"]) >= 5
    assert standard_errors(tuned["shapes-exact"]) >= 3


def test_a_random_reward_gains_nothing_of_the_kind(tmp_path):
    tuned = paired("tests/specs/random-reward.toml", tmp_path, "run.steps=8")  # where steps are longest
    assert abs(standard_errors(tuned["clip"])) < 3
    assert abs(standard_errors(tuned["shapes-exact"])) < 3
    assert abs(tuned["shapes-exact"]["difference"]) <= 0.02
