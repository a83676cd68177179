"""Whole runs of ppo-epd on a toy flow: what a user sees of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from t2ialign import SpecError
from t2ialign.cli.parts import parse_samplers
from t2ialign.evaluation.counting import counting
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import finish, runner
from t2ialign.run.display import Display
from t2ialign.tensors.distributed import World
from t2ialign_ppo.rollouts import rollout, scored
from t2ialign_solvers.config import EpdConfig
from t2ialign_solvers.epd import Epd
from t2ialign_solvers.table import load_table

QUIET = Display(quiet=True)


def optimizer_of(spec, steps=0, **changes):
    problem = replace(assemble(spec, report=lambda text: None), **changes)
    optimizer = load_optimizer(problem)
    for index in range(steps):
        optimizer.step(index)
    return optimizer


def test_a_run_learns_on_images_it_never_saw(ppo_spec):
    spec = ppo_spec(
        run={"steps": 30, "checkpoint_every": 10},
        optimizer={"validate_every": 5, "validation_images": 5, "learning_rate": 5e-3},
        prompts={"file": "prompts.txt", "per_step": 5, "images_per_prompt": 8},
        evaluation={"images_per_prompt": 16, "save_images": False},
    )
    run = runner.start(spec, QUIET)
    paired = json.loads((run.path / "evaluation/summary.json").read_text())["paired"]["tuned"]["agreement"]
    assert paired["difference"] > 3 * paired["se"] > 0
    metrics = run.metrics()
    assert metrics[-1]["ppo/kl"] > 0
    assert metrics[-1]["validation/best"] > 0
    assert metrics[0]["ppo/ratio"] == pytest.approx(1, abs=0.5)


def test_killed_and_resumed_equals_uninterrupted(ppo_spec, tmp_path):
    options = {"scale_dir": "bounded", "scale_time": "log-normal", "epochs": 2}
    whole = runner.start(ppo_spec(options, run={"name": "whole"}), QUIET)
    half = runner.start(ppo_spec(options, run={"name": "half"}), QUIET)
    shutil.rmtree(half.path / "checkpoints" / "step-000004")
    runner.resume(half.path, QUIET)
    assert half.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    for name in ("export/table.json", "evaluation/scores.jsonl"):
        ours, theirs = ((run.path / name).read_text() for run in (half, whole))
        assert ours == theirs
    state, expected = (run.load_checkpoint()[1].tensors for run in (half, whole))
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_ranks_share_the_images_and_learn_the_same(ppo_spec):
    """Two ranks played one after the other: each scores its half; what they would gather is what one rank has."""
    spec = ppo_spec()
    alone = optimizer_of(spec)
    tables = alone.policy().draw(range(12)).table(alone.start_table)
    batch = alone.problem.draw(0)
    expected = scored(alone.problem, tables, batch.conditioning, batch.seeds).rewards["agreement"]
    parts = []
    for rank in (0, 1):
        problem = replace(alone.problem, world=Recorder(rank, 2, parts))
        scored(problem, tables, batch.conditioning, batch.seeds)
    assert torch.allclose(torch.cat(parts), expected, atol=1e-6)


class Recorder(World):
    """A world of several ranks that keeps what this one gives, in place of sending it."""

    def __init__(self, rank, size, parts):
        super().__init__(rank, size)
        object.__setattr__(self, "parts", parts)

    def gather(self, tensor):
        self.parts.append(tensor)
        return tensor.repeat(self.size)


def test_export_is_the_delivered_table_bit_for_bit(ppo_spec, tmp_path):
    optimizer = optimizer_of(ppo_spec({"scale_dir": "log-normal", "validate_every": 0}), steps=2)
    optimizer.export(tmp_path / "export")
    batch = optimizer.problem.draw(5)
    expected = optimizer.generate(batch.conditioning, batch.seeds)
    start = optimizer.problem.generate(batch.conditioning, batch.seeds)
    assert not torch.equal(expected, start)
    for name in ("table.json", "table.safetensors"):
        file = tmp_path / "export" / name
        table = load_table(str(file))
        assert torch.equal(table.positions, optimizer.mean_table().positions)
        assert torch.equal(table.scale_dir, optimizer.mean_table().scale_dir)  # not cut to any range
        other = replace(optimizer.problem, sampler=Epd(EpdConfig(table=str(file))))
        assert torch.equal(other.generate(batch.conditioning, batch.seeds), expected)
    assert table.info["backend"] == "toy-flow"
    assert 'kind = "epd"' in (tmp_path / "export/README.md").read_text()


def test_the_base_is_the_start_table_and_an_exported_table_can_start(ppo_spec, tmp_path):
    optimizer = optimizer_of(ppo_spec({"validate_every": 0}), steps=1)
    optimizer.export(tmp_path / "export")
    again = optimizer_of(ppo_spec(sampler={"kind": "epd", "table": str(tmp_path / "export/table.json")}))
    batch = again.problem.draw(0)
    base = again.problem.generate(batch.conditioning, batch.seeds)
    assert torch.equal(base, optimizer.generate(batch.conditioning, batch.seeds))
    assert torch.allclose(again.mean_table().positions, again.start_table.positions, atol=1e-7)


def test_a_group_shares_its_noise_and_each_image_has_its_own_table(ppo_spec):
    optimizer = optimizer_of(ppo_spec())
    batch = optimizer.problem.draw(0)
    seeds = optimizer._noise_seeds(batch)
    assert [len(set(seeds[row : row + 4])) for row in (0, 4, 8)] == [1, 1, 1]
    assert len(set(seeds)) == 3
    tables = optimizer.policy().draw(range(4)).table(optimizer.start_table)
    with counting() as count:
        images = rollout(optimizer.problem, tables, batch.conditioning[:4], seeds[:4])
    assert count.calls == 2 * 3 + 1  # the probes of an interval are one call, and the native grid ends with one
    assert count.rows == 4 * ((1 + 2) * 3 + 1)
    for row in range(4):
        alone = rollout(optimizer.problem, tables.rows(slice(row, row + 1)), batch.conditioning[[row]], [seeds[row]])
        assert torch.allclose(images[[row]], alone, atol=1e-6)
    assert len({image.sum().item() for image in images}) == 4


def test_the_best_validated_table_is_delivered(ppo_spec):
    optimizer = optimizer_of(ppo_spec({"validate_every": 1}))
    validation = optimizer.validation
    start, gains = optimizer.start_table, []
    for step in range(4):
        gains.append(optimizer.step(step).metrics["validation/gain"])
    best = max(range(4), key=gains.__getitem__)
    if gains[best] > 0:
        assert (validation.best_step, validation.best_gain) == (best + 1, gains[best])
    else:
        assert optimizer.table is start
    worse = start.like(positions=torch.tensor([[0.97, 0.98]]).expand(3, 2))
    assert validation.try_table(worse, 9).mean < 0
    assert validation.best_step != 9


def test_a_validation_list_of_ones_own_goes_into_the_run_and_decides(ppo_spec, tmp_path):
    file = tmp_path / "choose.txt"
    file.write_text("green\nviolet\ngreen\norange\n")
    options = {"validation_prompts": "choose.txt"}
    spec = ppo_spec(options, run={"steps": 2})
    assert spec.optimizer_config.plan(spec).notes["validation"] == "3 images every 2 steps"
    run = runner.start(spec, QUIET)
    first = run.metrics()
    validation = optimizer_of(spec).validation
    assert sorted(validation.conditioning.prompts) == ["green", "orange", "violet"]
    file.unlink()
    assert (run.path / "prompts/optimizer.validation_prompts.txt").is_file()
    shutil.rmtree(run.path / "checkpoints" / "step-000002")
    runner.resume(run.path, QUIET)
    assert run.metrics() == first
    usual = runner.start(ppo_spec(run={"steps": 2}), QUIET)
    assert usual.metrics()[-1]["validation/gain"] != first[-1]["validation/gain"]


def test_one_prompt_cannot_choose(ppo_spec, tmp_path):
    (tmp_path / "choose.txt").write_text("green\n")
    with pytest.raises(SpecError, match="2 or more prompts"):
        ppo_spec({"validation_prompts": "choose.txt"})
    ppo_spec({"validation_prompts": "choose.txt", "validate_every": 0})


def test_samplers_are_compared_at_counted_cost(ppo_spec):
    run = runner.start(ppo_spec(run={"steps": 1}), QUIET)
    texts = ["ddim={steps=9}", "heun={steps=5}", "ipndm={steps=9, order=2}", "ipndm={steps=9, order=4}"]
    run_dir, problem, optimizer = runner.restore(run.path)
    summary = finish.evaluate_run(run_dir, problem, optimizer, QUIET, parse_samplers(texts))
    names = ["base", "tuned", "ddim-9", "heun-9", "ipndm-9", "ipndm-9-v2"]
    assert list(summary["variants"]) == list(summary["cost"]) == names
    assert list(summary["paired"]) == names[1:]
    assert {name: tuple(cost.values()) for name, cost in summary["cost"].items()} == {
        "base": (10, 7),
        "tuned": (10, 7),
        **dict.fromkeys(names[2:], (9, 9)),
    }
    table = (run.path / "evaluation/table.md").read_text()
    assert "| agreement | heun-9 | 9 | 9 |" in table


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"prompts": {"file": "prompts.txt", "per_step": 3, "images_per_prompt": 1}}, "must be 2 or more"),
        ({"sampler": {"kind": "heun", "steps": 3}}, "needs a sampler that is 'table'"),
        ({"optimizer": {"scale_dir": "bounded", "scale_std": 0.3}}, "scale_std must be smaller than scale_bound"),
        ({"reward": [{"kind": "agreement", "sampler": {"kind": "hoin"}}]}, "heun"),
        (
            {"optimizer": {"validation_prompts": "promts.txt"}},
            r"optimizer.validation_prompts .*did you mean 'prompts.txt'",
        ),
    ],
)
def test_wrong_specs_are_one_clear_error(ppo_spec, tables, message):
    with pytest.raises(SpecError, match=message):
        ppo_spec(**tables)


def test_other_optimizers_only_measure_agreement(ppo_spec):
    agreement = {"kind": "agreement", "sampler": {"kind": "heun", "steps": 8}}
    with pytest.raises(SpecError, match="'toy-search' does not draw"):
        ppo_spec({"kind": "toy-search"}, reward=[agreement])
    rewards = [{"kind": "toy-redness"}, {**agreement, "weight": 0.0}]
    run = runner.start(ppo_spec({"kind": "toy-search"}, reward=rewards), QUIET)
    summary = json.loads((run.path / "evaluation/summary.json").read_text())
    assert list(summary["variants"]["base"]) == ["toy-redness", "agreement"]
    assert summary["variants"]["base"]["agreement"]["mean"] < 0
