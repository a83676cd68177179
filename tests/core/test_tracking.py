"""Evaluations along a run: the schedule, the curves, the alarm, the best step; and a killed run writes the same."""

from __future__ import annotations

import json

import pytest
import torch

import t2ialign
from t2ialign.errors import UsageError
from t2ialign.evaluation.drift import alarms
from t2ialign.evaluation.image_statistics import STATISTICS, image_statistics
from t2ialign.evaluation.schedule import SHARE, schedule
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing.world import installed, write_spec

QUIET = Display(quiet=True)
PROMPTS = [f"prompt {number}" for number in range(40)]


class Brightness(t2ialign.Reward):
    """Mean of all channels: what a run that hacks its reward burns its images out for."""

    differentiable = True

    def score(self, images, prompts):
        return images.mean((1, 2, 3))


class Contrast(t2ialign.Reward):
    """A judge that nobody optimises: the standard deviation of all pixels."""

    def score(self, images, prompts):
        return images.std((1, 2, 3))


class Climb(t2ialign.LoraOptimizer):
    """Plain gradient ascent on the mix."""

    class Config(t2ialign.LoraOptimizerConfig):
        rate: float = 0.5

    def step(self, index: int) -> t2ialign.StepResult:
        batch, parameters = self.problem.draw(index), self.problem.adapter.parameters()
        images = self.problem.render(batch.conditioning, batch.seeds)
        scores = self.problem.rewards.score(images, batch.conditioning.prompts)
        value = self.problem.rewards.combine(scores).mean()
        for parameter, gradient in zip(
            parameters.values(), torch.autograd.grad(value, list(parameters.values())), strict=True
        ):
            parameter.data += self.config.rate * gradient
        return t2ialign.StepResult({f"reward/{name}": values.mean().item() for name, values in scores.items()})


class Plugin:
    @t2ialign.hookimpl
    def t2ialign_rewards(self, register):
        register("brightness", Brightness)
        register("contrast", Contrast)

    @t2ialign.hookimpl
    def t2ialign_optimizers(self, register):
        register("climb", Climb)


@pytest.fixture
def hack(tmp_path):
    """Writes a spec that optimises brightness in 20 steps, and gives it back parsed."""

    def build(evaluation=None, **run):
        (tmp_path / "many.txt").write_text("\n".join(PROMPTS))
        path = write_spec(
            tmp_path,
            run={"steps": 20, "out": str(tmp_path / "runs"), "checkpoint_every": 5, **run},
            optimizer={"kind": "climb", "rate": 100.0},
            reward=[{"kind": "brightness"}, {"kind": "contrast", "weight": 0.0}],
            prompts={"file": "many.txt", "per_step": 40, "images_per_prompt": 4},
            evaluation={"save_images": False, **(evaluation or {})},
            samples={"every": 0},
        )
        return specs.load(path)

    with installed(Plugin()):
        yield build


def test_a_run_that_hacks_its_reward_raises_the_alarm_before_half_of_its_steps(hack):
    run = runner.start(hack(), QUIET)
    lines = run.history()
    first = next(line for line in lines if line.get("evaluation/drift"))
    assert first["step"] < 10
    assert first["evaluation/brightness"] > lines[0]["evaluation/brightness"]
    assert run.summary()["drift"]
    card = (run.path / "export" / "README.md").read_text()
    assert "Drift" in card
    assert "contrast" in card


def test_stop_on_drift_ends_the_run_and_delivers_and_a_resumed_one_stays_ended(hack):
    run = runner.start(hack(stop_on_drift=True), QUIET)
    last = run.history()[-1]
    assert last["step"] < 10
    assert last["evaluation/drift"]
    assert (run.path / "export" / "pytorch_lora_weights.safetensors").exists()
    before = run.metrics_file.read_text()
    runner.resume(run.path, QUIET)
    assert run.metrics_file.read_text() == before


def test_keep_best_delivers_the_step_with_the_highest_held_out_reward(hack):
    run = runner.start(hack(keep="best", evaluation={"every": 1}), QUIET)
    held_out = {line["step"]: line["evaluation/contrast"] for line in run.history() if line["step"]}
    best = max(held_out, key=held_out.get)
    assert best < 20
    assert run.load_best()[0] == best
    delivered = run.summary()["variants"]["tuned"]["contrast"]["mean"]
    assert delivered == pytest.approx(held_out[best], rel=1e-6)
    restored = runner.restore(run.path, display=QUIET)[2].state().tensors
    assert all(torch.equal(restored[name], tensor) for name, tensor in run.load_best()[1].tensors.items())


@pytest.mark.parametrize("kill", [1, 7, 13])
def test_a_killed_run_writes_the_same_curves(hack, kill, monkeypatch):
    whole = runner.start(hack(), QUIET)
    step = Climb.step

    def dying(self, index):
        if index == kill:
            raise KeyboardInterrupt
        return step(self, index)

    monkeypatch.setattr(Climb, "step", dying)
    spec = hack()
    with pytest.raises(runner.Interrupted):
        runner.start(spec, QUIET)
    monkeypatch.setattr(Climb, "step", step)
    killed = max(whole.path.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    assert killed != whole.path
    runner.resume(killed, QUIET)
    assert (killed / "metrics.jsonl").read_text() == whole.metrics_file.read_text()


def test_the_default_is_at_most_a_twentieth_of_the_run_and_has_both_ends(hack):
    spec = hack()
    plan = spec.optimizer_config.plan(spec)
    found = schedule(spec, plan)
    assert 0 < found.times * found.images <= SHARE * plan.steps * plan.images_per_step
    run = runner.start(spec, QUIET)
    measured = [line["step"] for line in run.history() if "evaluation/brightness" in line]
    assert (measured[0], measured[-1], len(measured)) == (0, 20, found.times)
    base = run.summary()["variants"]["base"]["brightness"]["mean"]
    assert run.history()[0]["evaluation/brightness"] == pytest.approx(base, abs=0.1)
    assert run.history()[0]["evaluation/brightness/ci95"] == 0  # the base against itself


def test_a_run_too_small_for_that_has_none_and_zero_switches_it_off(hack):
    assert schedule(hack(steps=2), hack(steps=2).optimizer_config.plan(hack(steps=2))) is None
    off = hack(evaluation={"every": 0})
    assert schedule(off, off.optimizer_config.plan(off)) is None


@pytest.mark.parametrize(("key", "value"), [("keep", "best"), ("stop_on_drift", True)])
def test_what_rests_on_evaluations_says_when_there_are_none(hack, key, value):
    spec = hack(evaluation={"every": 0}, **{key: value})
    with pytest.raises(UsageError, match=rf"run\.{key} .*evaluation\.every"):
        runner.start(spec, QUIET)
    assert not list((spec.folder / "runs").iterdir())


def test_image_statistics_of_pictures_that_one_can_check_by_hand():
    black, white, red = torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.zeros(3, 8, 8)
    red[0] = 1
    halves = torch.cat([torch.zeros(3, 8, 4), torch.ones(3, 8, 4)], 2)
    found = image_statistics(torch.stack([black, white, red, halves]), per_prompt=2)
    expected = {
        "dark": [1, 0, 0, 0.5],
        "bright": [0, 1, 0, 0.5],
        "saturation": [0, 0, 1, 0],
        "contrast": [0, 0, 0, 0.5],
        "edges": [0, 0, 0, 1 / 14],  # one of seven steps across, none down
        "entropy": [0, 0, 0, 1],
        "distance": [1, 1, (1 / 2) ** 0.5, (1 / 2) ** 0.5],
    }
    for name, values in expected.items():
        assert found[f"image/{name}"].tolist() == pytest.approx(values, abs=1e-6), name
    assert bool(image_statistics(torch.stack([black, white]))["image/distance"].isnan().all())


def pair(difference: float, se: float = 1.0) -> dict:
    return {"difference": difference, "se": se, "prompts": 16}


@pytest.mark.parametrize(
    ("reward", "held_out", "looks", "expected"),
    [
        (9, {"judge": -3.1}, {}, ["judge"]),
        (9, {"judge": -2.9}, {}, []),
        (-1, {"judge": -9}, {}, []),  # the optimised reward did not rise: that is no hacking
        (9, {}, {"image/contrast": -4}, ["image/contrast"]),
        (9, {}, {"image/contrast": 4}, []),  # more contrast is no degeneration
        (9, {"judge": 1}, {"image/bright": 4}, ["image/bright"]),
        (9, {"judge": 4}, {"image/bright": 4}, []),  # a judge says that the images became better
        (9, {"judge": 4, "other": -4}, {"image/bright": 4}, ["other"]),
    ],
)
def test_what_raises_the_alarm(reward, held_out, looks, expected):
    looked = {name: pair(looks.get(name, 0)) for name in STATISTICS}
    summary = {
        "held_out": list(held_out),
        "paired": {"tuned": {"r": pair(reward), **{name: pair(z) for name, z in held_out.items()}}},
        "image_statistics": {
            "variants": {"base": {name: {"se": 1.0} for name in STATISTICS}},
            "paired": {"tuned": looked},
        },
    }
    assert [alarm.name for alarm in alarms(summary, 3.0)] == expected
    small = json.loads(json.dumps(summary))
    for name in STATISTICS:
        small["image_statistics"]["variants"]["base"][name] = {"se": 3.0}
    assert not [alarm for alarm in alarms(small, 3.0) if alarm.name in STATISTICS]  # nobody would see it
