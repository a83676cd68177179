"""The optimizers on the toy world."""

import pytest
import torch

import t2ialign
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign.testing import check_optimizer, installed, run_spec, write_spec
from t2ialign_rl import plugin
from t2ialign_rl.flow_grpo import FlowGrpo
from t2ialign_rl.optimizer import Awm, Nft

FLOW = {
    "backend": {"kind": "toy-flow", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 4}},
    "sampler": {"kind": "toy-steps"},
}
PROMPTS = {"file": "prompts.txt", "per_step": 5, "images_per_prompt": 8}


@pytest.mark.parametrize("optimizer", [Nft, Awm, FlowGrpo])
@pytest.mark.parametrize("options", [{}, {"updates": 2, "ema": 0.9}], ids=["plain", "several-updates"])
def test_contract(optimizer, options):
    check_optimizer(optimizer(optimizer.Config(**options)))


@pytest.mark.parametrize(("kind", "steps", "fresh"), [("nft", 30, 0.0), ("awm", 30, 0.0), ("flow-grpo", 150, 1.0)])
def test_the_reward_rises_on_held_out_noise(tmp_path, kind, steps, fresh):
    run = run_spec(
        tmp_path,
        plugin,
        **FLOW | {"sampler": {"kind": "toy-steps", "fresh": fresh}},
        run={"steps": steps, "out": str(tmp_path / "runs")},
        optimizer={"kind": kind, "learning_rate": 1e-2},
        prompts=PROMPTS,
        evaluation={"images_per_prompt": 16},
    )
    gain = run.summary()["paired"]["tuned"]["toy-redness"]
    assert gain["difference"] > 3 * gain["se"] > 0


@pytest.mark.parametrize("kind", ["nft", "awm"])
def test_the_first_step_is_at_the_base(tmp_path, kind):
    path = write_spec(tmp_path, **FLOW, optimizer={"kind": kind}, prompts=PROMPTS)
    with installed(plugin):
        metrics = load_optimizer(assemble(specs.load(path))).step(0).metrics
    assert metrics["learn/kl"] == 0
    if kind == "awm":
        assert metrics["learn/ratio"] == pytest.approx(1, abs=1e-5)
        assert metrics["learn/slow_kl"] == 0


def test_the_old_policy_draws(tmp_path):
    """With an old policy that stays what it was, images stay what they were while the LoRA changes."""
    with installed(plugin):
        spec = specs.load(
            write_spec(tmp_path, **FLOW, optimizer={"kind": "nft", "learning_rate": 0.1}, prompts=PROMPTS)
        )
        optimizer = load_optimizer(assemble(spec))
        before = optimizer.step(0)
        optimizer.old = {name: torch.zeros_like(tensor) for name, tensor in optimizer.old.items()}
        again = optimizer.step(0)
    assert torch.equal(again.images, before.images)
    assert again.metrics["learn/kl"] > 0


@pytest.mark.parametrize(
    ("options", "prompts", "says"),
    [
        ({}, {**PROMPTS, "images_per_prompt": 1}, "images_per_prompt must be 2 or more"),
        ({"times": 20}, PROMPTS, "times must be at most 9"),
        ({"updates": 41}, PROMPTS, "40 images"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, options, prompts, says):
    path = write_spec(tmp_path, **FLOW, optimizer={"kind": "nft", **options}, prompts=prompts)

    def planned():
        spec = specs.load(path)
        return spec.optimizer_config.plan(spec)

    with installed(plugin), pytest.raises(t2ialign.T2IAlignError, match=says):
        planned()


@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_grpo_starts_at_ratio_one_and_at_the_base(tmp_path, micro_batch):
    tables = FLOW | {"sampler": {"kind": "toy-steps", "fresh": 0.5}, "prompts": PROMPTS}
    run = {"steps": 4, "out": str(tmp_path / "runs"), "micro_batch": micro_batch}
    path = write_spec(tmp_path, **tables, run=run, optimizer={"kind": "flow-grpo", "kl": 0.1})
    with installed(plugin):
        metrics = load_optimizer(assemble(specs.load(path))).step(0).metrics
    assert metrics["learn/ratio_error"] < 1e-5
    assert metrics["learn/kl"] < 1e-10
