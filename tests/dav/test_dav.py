"""The optimizers on a toy rectified flow with exact rewards."""

import json

import pytest
import torch
from safetensors.torch import load_file

from t2ialign import SpecError
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.tensors.distributed import World
from t2ialign_dav.cost import lockstep, tree
from t2ialign_dav.optimizer import Loop

QUIET = Display(quiet=True)
LIGHT = [{"kind": "toy-lightness"}, {"kind": "toy-variety", "weight": 0.0}]
#: The toy's last step to time 0 has no noise; this grid ends before.
NOISY = {"kind": "ddim", "steps": 4, "eta": 1.0, "schedule": "discrete", "to_zero": False}


def steps_of(spec, count=2, world=None):
    """Metrics of the first steps, and the state after them."""
    optimizer = load_optimizer(assemble(spec, world))
    return [optimizer.step(index).metrics for index in range(count)], optimizer.state().tensors


def same(found, expected, tolerance=2e-4):
    (lines, tensors), (others, more) = found, expected
    for line, other in zip(lines, others, strict=True):
        assert line == pytest.approx(other, rel=tolerance, abs=tolerance)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, more[name], rtol=1e-2, atol=1e-3)


def gain(run, reward):
    return json.loads((run.path / "evaluation" / "summary.json").read_text())["paired"]["tuned"][reward]


@pytest.mark.parametrize(
    ("optimizer", "reward"),
    [
        ({}, "toy-redness"),
        ({"value_gradient": False, "particles": 16, "alpha": 0.1}, "toy-lightness"),
        ({"target": "sample", "weight_cap": 1.0, "initial_search": True}, "toy-redness"),
        ({"hill_climbing": False, "improve_steps": 2, "accumulation": 2}, "toy-redness"),
        ({"kind": "dav-upstream", "particles": 16, "accumulation": 6}, "toy-redness"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_the_reward_rises_on_held_out_noise(dav_spec, optimizer, reward):
    sampler = NOISY if optimizer.get("kind") == "dav-upstream" else {**NOISY, "to_zero": True}
    tables = {"sampler": sampler, "reward": [{"kind": reward}], "evaluation": {"images_per_prompt": 16}}
    spec = dav_spec(optimizer, run={"steps": 20}, **tables)
    run = runner.start(spec, QUIET)
    assert gain(run, reward)["difference"] > 3 * gain(run, reward)["se"] > 0


def test_search_alone_delivers_better_images(dav_spec):
    optimizer = {"kind": "dav-search", "particles": 6, "value_gradient": False, "learning_rate": None}
    spec = dav_spec(optimizer, run={"steps": 2}, reward=LIGHT)
    run = runner.start(spec, QUIET)
    assert gain(run, "toy-lightness")["difference"] > 5 * gain(run, "toy-lightness")["se"] > 0
    assert len(list((run.path / "export").glob("*.png"))) == 2 * 6


def test_a_step_is_a_function_of_spec_state_and_index(dav_spec):
    spec = dav_spec({"improve_steps": 2})
    expected = steps_of(spec, 4)
    first = load_optimizer(assemble(spec))
    lines = [first.step(index).metrics for index in range(2)]
    second = load_optimizer(assemble(spec))
    second.load_state(first.state())
    lines += [second.step(index).metrics for index in range(2, 4)]
    assert lines == expected[0]
    for name, tensor in second.state().tensors.items():
        assert torch.equal(tensor, expected[1][name])


@pytest.mark.parametrize("kind", ["dav", "dav-upstream"])
@pytest.mark.parametrize("micro_batch", [1, 5])
def test_the_micro_batch_changes_nothing(dav_spec, kind, micro_batch):
    tables = {"sampler": NOISY, "optimizer": {"kind": kind}}
    found = steps_of(dav_spec(run={"micro_batch": micro_batch}, **tables))
    same(found, steps_of(dav_spec(run={"micro_batch": 64}, **tables)))


class Ranks(World):
    """One of two processes that take turns; ``gather`` joins with what the other one left at the same call."""

    def __init__(self, rank, box):
        super().__init__(rank, 2)
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "calls", [])

    def gather(self, tensor):
        call = len(self.calls)
        self.calls.append(call)
        self.box[call, self.rank] = tensor
        other = self.box.get((call, 1 - self.rank), torch.zeros_like(tensor))
        return torch.cat([tensor, other] if self.rank == 0 else [other, tensor])


@pytest.mark.parametrize("images_per_prompt", [1, 2])
def test_ranks_share_trajectories_and_transitions(dav_spec, images_per_prompt):
    """Two ranks that take turns until both know the other's part end where one process ends."""
    prompts = {"file": "prompts.txt", "per_step": 3, "images_per_prompt": images_per_prompt}
    spec = dav_spec({"accumulation": 3}, prompts=prompts)
    expected = steps_of(spec, 1)
    box = {}
    for _ in range(8):  # each turn makes one more of the exchanges right
        for rank in (0, 1):
            found = steps_of(spec, 1, Ranks(rank, box))
    same(found, expected)


def counted(spec):
    """Forwards, decodes, backwards of the backend per trajectory in one search, and what the search says of itself."""
    problem = assemble(spec)
    optimizer = load_optimizer(problem)
    optimizer.unit = 1.0
    backend, batch = problem.backend, problem.draw(0)
    backend.forwards = backend.decodes = backend.backwards = 0
    from t2ialign_dav.explore import explore

    _, cost = explore(problem, optimizer.search, batch.conditioning, batch.seeds, 1.0, World())
    seen = (backend.forwards, backend.decodes, backend.backwards)
    return tuple(count / len(batch.seeds) for count in seen), (cost.forwards, cost.decodes, cost.backwards)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("initial_search", [True, False])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("to_zero", [True, False])
def test_cost_of_a_trajectory(dav_spec, guided, initial_search, particles, to_zero):
    options = {"value_gradient": guided, "initial_search": initial_search, "particles": particles}
    sampler = {**NOISY, "to_zero": to_zero}
    spec = dav_spec(options, sampler=sampler)
    seen, said = counted(spec)
    initial = particles if initial_search else 1
    formula = lockstep(4, 4 - to_zero, particles, initial, guided)
    assert seen == said == (formula.forwards, formula.decodes, formula.backwards)
    if not to_zero:
        assert spec.optimizer_config.plan(spec).evaluations == formula.forwards
        spec = dav_spec({"kind": "dav-upstream", **options}, sampler=sampler)
        seen, said = counted(spec)
        formula = tree(4, particles, initial, guided)
        assert seen == said == (formula.forwards, formula.decodes, formula.backwards)
        assert spec.optimizer_config.plan(spec).evaluations == formula.forwards


def test_a_node_costs_particles_forwards_where_the_published_code_needs_two_more():
    for steps in (10, 50):
        assert lockstep(steps, steps, 16, 1, False).forwards == 1 + (steps - 1) * 16
        assert tree(steps, 16, 1, False).forwards == 1 + (steps + 1) * (16 + 2)


def test_the_penalty_keeps_the_policy_near_the_base(dav_spec):
    drift = [steps_of(dav_spec({"train_kl": kl}), 8)[0][-1]["learn/kl"] for kl in (1.0, 10.0)]
    assert drift[1] < 0.8 * drift[0]


def test_the_reference_is_the_network_without_its_lora(dav_spec):
    """At the start both are one: the penalty is zero; afterwards it is not."""
    lines, _ = steps_of(dav_spec({"accumulation": 6}), 2)
    assert lines[0]["learn/kl"] == 0
    assert lines[1]["learn/kl"] > 0


def test_without_hill_climbing_the_search_does_not_see_the_lora(dav_spec):
    for hill_climbing in (True, False):
        optimizer = load_optimizer(assemble(dav_spec({"hill_climbing": hill_climbing})))
        before = optimizer.step(0).metrics["reward/toy-redness"]
        after = optimizer.step(0).metrics["reward/toy-redness"]
        assert (before == after) is not hill_climbing


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"sampler": {"kind": "ddim", "steps": 4}}, "'stochastic'"),
        ({"reward": [{"kind": "toy-lightness"}]}, "'differentiable'"),
        ({"reward": [{"kind": "toy-redness", "normalise": "zscore"}]}, "'none' or 'range'"),
        ({"optimizer": {"alpha": 0.0}}, "must be > 0"),
    ],
)
def test_wrong_specs(dav_spec, tables, words):
    with pytest.raises(SpecError, match=words):
        dav_spec(**tables)


def test_a_reward_without_gradient_is_fine_when_none_is_asked_for(dav_spec):
    spec = dav_spec({"value_gradient": False}, reward=LIGHT)
    plan = spec.optimizer_config.plan(spec)
    assert plan.notes["each trajectory"].endswith("0 backwards")
    lines, _ = steps_of(spec, 1)
    assert lines[0]["reward/toy-variety"] > 0


def test_the_unit_makes_the_scale_of_a_reward_irrelevant(dav_spec):
    lines = [
        steps_of(dav_spec(reward=[{"kind": "toy-redness", "gain": gain, "name": "r"}]), 2)[0] for gain in (1.0, 64.0)
    ]
    for one, other in zip(*lines, strict=True):
        assert other.pop("reward/r") == pytest.approx(64 * one.pop("reward/r"), rel=1e-4)
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", ["dav", "dav-upstream"])
def test_a_run_that_crashes_and_resumes_equals_one_that_does_not(dav_spec, kind, monkeypatch):
    tables = {"run": {"checkpoint_every": 2}, "sampler": NOISY}
    whole = runner.start(dav_spec({"kind": kind}, **tables), QUIET)
    step, calls = Loop.step, []

    def fragile(self, index):
        calls.append(index)
        if calls.count(3) == 1 and index == 3:
            raise KeyboardInterrupt
        return step(self, index)

    monkeypatch.setattr(Loop, "step", fragile)
    spec = dav_spec({"kind": kind}, **tables)
    with pytest.raises(runner.Interrupted):
        runner.start(spec, QUIET)
    broken = whole.path.with_name(f"{whole.path.name}-2")
    runner.resume(broken, QUIET)
    assert calls == [0, 1, 2, 3, 2, 3]
    for file in ("metrics.jsonl", "evaluation/scores.jsonl"):
        assert (broken / file).read_bytes() == (whole.path / file).read_bytes()
    expected, found = (load_file(run / "export" / "pytorch_lora_weights.safetensors") for run in (whole.path, broken))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
