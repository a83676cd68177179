"""The shapes world: a real multi-step model in Stable Diffusion's format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing.ranks import ranks
from t2ialign_solvers.table import load_table

SPEC = Path(__file__).parents[2] / "specs/ppo-epd-shapes.toml"
SMALL = ["run.steps=2", "prompts.per_step=2", "evaluation.limit=4", "optimizer.validation_images=2"]
pytestmark = pytest.mark.slow


def test_the_mean_table_gains_on_held_out_prompts(tmp_path):
    """A third of the shipped run is enough to show it."""
    shorter = ["run.steps=9", "optimizer.validate_every=9", "reward.0.sampler.steps=10", f'run.out="{tmp_path}"']
    run = runner.start(specs.load(SPEC, shorter), Display(quiet=True))
    gain = json.loads((run.path / "evaluation/summary.json").read_text())["paired"]["tuned"]["agreement"]
    assert gain["difference"] >= 3 * gain["se"] > 0


def test_two_processes_give_the_result_of_one(tmp_path):
    small = [*SMALL, "reward.0.sampler.steps=5", f'run.out="{tmp_path}"']

    def work(rank: int) -> None:
        runner.start(specs.load(SPEC, [*small, "run.name=two"]), Display(quiet=True))

    runner.start(specs.load(SPEC, [*small, "run.name=one"]), Display(quiet=True))
    ended = ranks(2, work, tmp_path / "logs", limit=600)
    assert ended.codes == [0, 0], ended.text
    one, two = (load_table(str(tmp_path / name / "export/table.json")) for name in ("one", "two"))
    assert torch.allclose(one.positions, two.positions, atol=1e-4)
    assert torch.allclose(one.weights, two.weights, atol=1e-4)
    first, second = (tmp_path / name / "metrics.jsonl" for name in ("one", "two"))
    for a, b in zip(first.read_text().splitlines(), second.read_text().splitlines(), strict=True):
        ours, theirs = json.loads(a), json.loads(b)
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
