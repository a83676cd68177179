"""The contract tests: right parts pass, and every wrong one is told in a sentence what is wrong with it."""

from __future__ import annotations

import random
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import t2ialign
from t2ialign import StepResult, seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.testing import check_backend, check_optimizer, check_reward, check_sampler, installed, run_spec, toy
from t2ialign.testing.backends import BackendContract
from t2ialign.testing.rewards import RewardContract
from t2ialign.testing.samplers import SamplerContract


def made(kind: type, **options):
    return kind(kind.Config(**options))


def model(kind: type = toy.ToyBackend, **options):
    return made(kind, checkpoint="some/model", dtype="float32", **options)


def methods(base: type, **changed) -> type:
    """A subclass with other methods; its name is the first one's."""
    return type(f"Bad{base.__name__}", (base,), changed)


def refused(check, part, sentence: str, **options) -> None:
    with pytest.raises(AssertionError, match=sentence) as caught:
        check(part, **options)
    assert "\n" not in str(caught.value)
    assert type(part).__name__ in str(caught.value)


@pytest.mark.parametrize("kind", [toy.Redness, toy.Darkness, toy.Variety])
def test_right_rewards_pass(kind):
    check_reward(made(kind))


def test_right_samplers_pass():
    check_sampler(made(toy.ToySteps), differentiable=True)
    check_sampler(made(toy.ToySteps, fresh=0.5), differentiable=True)
    check_sampler(made(toy.ToyStep))


@pytest.mark.parametrize("kind", [toy.ToyBackend, toy.ToyFlow])
def test_right_backends_pass_and_stay_as_they_were(kind):
    backend, fresh = model(kind), model(kind)
    check_backend(backend, differentiable=True)
    conditioning, sampler = fresh.encode(["a", "b"]), made(toy.ToyStep)
    torch.testing.assert_close(
        backend.generate(conditioning, [1, 2], sampler), fresh.generate(conditioning, [1, 2], sampler)
    )


def test_a_right_optimizer_passes():
    check_optimizer(made(toy.RandomSearch, scale=0.2))


colours = toy.Redness.score
calls = iter(range(10**6))


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (lambda self, images, prompts: [0.0] * len(images), "is a list; a reward returns one float32 score"),
        (lambda self, images, prompts: colours(self, images, prompts).mean(), r"shape \(\) and not \(6,\)"),
        (lambda self, images, prompts: colours(self, images, prompts)[:, None], r"shape \(6, 1\) and not \(6,\)"),
        (lambda self, images, prompts: colours(self, images, prompts).double(), "is float64; a reward returns"),
        (lambda self, images, prompts: images.mean((1, 2, 3)) / images.std((1, 2, 3)), "nan|inf for images that are 0"),
        (lambda self, images, prompts: colours(self, images, prompts) + next(calls), "function of image and prompt"),
        (lambda self, images, prompts: colours(self, images + torch.rand(()), prompts) * torch.rand(()), "no dropout"),
        (lambda self, images, prompts: colours(self, images.mul_(0.5), prompts), "changes the images"),
        (lambda self, images, prompts: images[:, 0].mean((1, 2)) - images.mean(), "depend on the other images"),
        (lambda self, images, prompts: images[:, 0].mean((1, 2)) * torch.arange(len(images)), "on the other images"),
        (lambda self, images, prompts: colours(self, images.detach(), prompts), "has no gradient"),
        (lambda self, images, prompts: colours(self, (255 * images).round() / 255, prompts), "gradient of zero"),
        (lambda self, images, prompts: colours(self, images.sub(images).sqrt() + images, prompts), "not finite"),
        (lambda self, images, prompts: images.missing, "raised AttributeError: 'Tensor' object has no"),
    ],
)
def test_a_wrong_reward_is_told_why(score, sentence):
    refused(check_reward, made(methods(toy.Redness, score=score)), sentence)


STEPS = toy.ToySteps


def steps(**changed):
    return made(methods(STEPS, **changed))


def scaled(self, denoiser, noise, seeds=None):
    return 0.5 * STEPS.sample(self, denoiser, noise, seeds)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"sample": lambda self, d, noise, seeds=None: noise[:2]}, r"shape \(2, 3, 4, 4\) and not \(4, 3, 4, 4\)"),
        ({"sample": lambda self, d, noise, seeds=None: noise / 0}, "is not finite"),
        ({"sample": lambda self, d, noise, seeds=None: d(noise, 1.0).x0}, r"calls the network 1 times.*say 4"),
        ({"times": lambda self, path: path.times(4).flip(0)}, "not a falling list"),
        ({"transition": lambda self, p, x, e, t, s: (e.x0, torch.tensor(-1.0))}, "standard deviation of -1"),
        (
            {"sample": lambda self, d, noise, seeds=None: STEPS.sample(self, d, noise, seeds) + torch.randn(())},
            "draws from torch's global generator",
        ),
        (
            {"sample": lambda self, d, noise, seeds=None: STEPS.sample(self, d, noise, seeds) + random.random()},
            "other latents for the same noise and seeds",
        ),
        (
            {"sample": lambda self, d, noise, seeds=None: STEPS.sample(self, d, noise - noise.mean(0), seeds)},
            "other latents in another batch",
        ),
        (
            {"sample": lambda self, d, noise, seeds=None: STEPS.sample(self, d, noise.mul_(2), seeds)},
            "changes the noise",
        ),
        ({"sample": lambda self, d, noise, seeds=None: STEPS.sample(self, d, 0 * noise, seeds)}, "the same latents"),
        ({"sample": scaled}, "from the only picture of a model on the VP path"),
        ({"sample": torch.no_grad()(STEPS.sample)}, "without a gradient"),
    ],
)
def test_a_wrong_sampler_is_told_why(changed, sentence):
    refused(check_sampler, steps(**changed), sentence, differentiable=True)


def test_a_sampler_may_refuse_a_family_but_not_all():
    def times(self, path):
        if isinstance(path, wrong):
            raise t2ialign.UsageError("not for me")
        return STEPS.times(self, path)

    wrong: type = t2ialign.tensors.paths.VPPath
    check_sampler(steps(times=times))
    wrong = object
    refused(check_sampler, steps(times=times), "refuses every path.*not for me")


BACK = toy.ToyBackend


def _draw(shift):
    return lambda self, conditioning, seeds, sampler=None, noise=None: (
        BACK.generate(self, conditioning, seeds, sampler, noise) * 0.5 + shift(self, conditioning, seeds)
    )


def thawed(self):
    return nn.Sequential(*(layer.requires_grad_(True) if layer is self.net[2] else layer for layer in self.net))


class Padded(toy.ToyBackend):
    def encode(self, prompts):
        found = super().encode(prompts)
        return Conditioning(found.prompts, {k: t * len(prompts) for k, t in found.tensors.items()})


class Deaf(toy.ToyBackend):
    def encode(self, prompts):
        return Conditioning(tuple(prompts), {"prompt_embeds": torch.ones(len(prompts), 8)})


class Unseeded(toy.ToyBackend):
    def build(self):
        return nn.Sequential(nn.Linear(56, 32), nn.Tanh(), nn.Linear(32, 48)).requires_grad_(False)


class Inconsistent(toy.ToyDenoiser):
    def predict(self, x, t):
        return t2ialign.Prediction(super().predict(x, t).x0, x)


class Unrelated(toy.ToyDenoiser):
    def rows(self, index):
        return type(self)(self.net, self.conditioning[[0] * len(index)])


class Elsewhere(toy.ToyBackend):
    """Its LoRA targets exist, and no image goes through them."""

    def build(self):
        net = super().build()
        net.unused = nn.Linear(4, 4)
        return net.requires_grad_(False)

    def denoiser(self, conditioning):
        return toy.ToyDenoiser(self.net[:3], conditioning)

    class Config(toy.ToyBackend.Config):
        def lora_targets(self):
            return ["unused"]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (methods(BACK, info=property(lambda self: None, lambda self, value: None)), "info is missing"),
        (methods(BACK, trainable=property(thawed)), "requires a gradient; a backend's own weights are frozen"),
        (Padded, "otherwise when it was encoded alone"),
        (methods(BACK, noise=lambda self, seeds: torch.ones(len(seeds), 3, 4, 4)), "the same for two seeds"),
        (methods(BACK, noise=lambda self, seeds: seeding.normal(range(len(seeds)), (3, 4, 4))), "in another batch"),
        (methods(BACK, decode=lambda self, latents: latents), r"lies in \[.*\]; images lie in \[0, 1\]"),
        (methods(BACK, decode=lambda self, latents: latents.sigmoid()[..., :3]), r"and not \(3, 3, 4, 4\)"),
        (methods(BACK, decode=lambda self, latents: latents.sigmoid().half()), "is float16"),
        (methods(BACK, generate=_draw(lambda self, c, s: 0.1 * torch.rand(()))), "global generator"),
        (methods(BACK, generate=_draw(lambda self, c, s: 0.1 * random.random())), "other images for the same prompts"),
        (methods(BACK, generate=_draw(lambda self, c, s: 0.1 / len(s))), "other pixels in another batch"),
        (
            methods(BACK, encode=lambda self, p: Conditioning(tuple(p), {"prompt_embeds": torch.ones(len(p), 8)})),
            "same",
        ),
        (methods(BACK, denoiser=lambda self, c: Inconsistent(self.net, c)), "not those of x_t"),
        (methods(BACK, denoiser=lambda self, c: Unrelated(self.net, c)), "something else for a row alone"),
        (methods(BACK, decode=lambda self, latents: latents.sigmoid().detach()), "without a gradient"),
        (methods(BACK, decode=lambda self, latents: latents.div(latents.std()).sigmoid()), "in another batch"),
        (Elsewhere, "the same images with a LoRA"),
        (Unseeded, "a second Unseeded draws other images"),
        (methods(BACK, load_lora=lambda self, folder: None), "with which it draws other images"),
    ],
)
def test_a_wrong_backend_is_told_why(kind, sentence):
    refused(check_backend, model(kind), sentence, differentiable=True)


SEARCH = toy.RandomSearch


class Forgetful(toy.RandomSearch):
    """Keeps a momentum that it leaves out of its state."""

    momentum = 0.0

    def step(self, index):
        found = super().step(index)
        self.momentum = self.momentum + 1
        state = self.state().tensors
        self.problem.adapter.load({name: (1 + 0.1 * self.momentum) * p for name, p in state.items()})
        return found


class Unnormalised(toy.RandomSearch):
    """Does not say which prompt a score belongs to."""

    def step(self, index):
        batch = self.problem.draw(index)
        images = self.problem.generate(batch.conditioning, batch.seeds)
        self.problem.rewards.combine(self.problem.rewards.score(images, batch.conditioning.prompts))
        return super().step(index)


def reporting(report):
    return methods(SEARCH, step=lambda self, index: report(self, SEARCH.step(self, index)))


def kept(values):
    return methods(SEARCH, state=lambda self: t2ialign.State(SEARCH.state(self).tensors, values))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (reporting(lambda self, result: result.metrics), "returns a dict; it returns a StepResult"),
        (reporting(lambda self, result: StepResult({})), "reports no metrics"),
        (reporting(lambda self, result: StepResult({"reward/x": "high"})), "'reward/x': 'high'; a metric is"),
        (reporting(lambda self, result: StepResult(result.metrics, result.images * 9)), r"images lie in \[0, 1\]"),
        (reporting(lambda self, result: StepResult({"x": torch.rand(()).item()})), "global generator"),
        (reporting(lambda self, result: StepResult({"x": random.random()})), "the same spec gives x"),
        (reporting(lambda self, result: StepResult({"x": float(self.problem.micro_batch)})), "in micro-batches of 2"),
        (kept({"x": {1, 2}}), "state cannot be written"),
        (kept({1: (2, 3)}), "a state that a checkpoint changes"),
        (Forgetful, "resumed after 2 steps it has"),
        (Unnormalised, "normalise = 'zscore-prompt'.*prompt_index"),
        (methods(SEARCH, step=lambda self, index: StepResult({"x": 0.0})), "changed nothing of its state"),
        (methods(SEARCH, generate=lambda self, c, s: torch.zeros(1)), r"has shape \(1,\)"),
        (methods(SEARCH, export=lambda self, folder: None, check=lambda self, folder: ""), "export wrote no README.md"),
        (methods(SEARCH, export=lambda self, folder: 1 / 0), "not its end: export: division by zero"),
    ],
)
def test_a_wrong_optimizer_is_told_why(kind, sentence):
    refused(check_optimizer, made(kind), sentence)


def test_an_optimizer_that_the_toy_world_cannot_serve_says_what_it_needs():
    with pytest.raises(t2ialign.UsageError, match=r"not what RandomSearch requires.*'table'"):
        check_optimizer(made(toy.RandomSearch), requires={"sampler": {"table"}})


def test_outcomes_go_on_after_a_failure():
    bad = made(methods(toy.Redness, score=lambda self, images, prompts: images[:, 0].mean((1, 2)) - images.mean()))
    found = list(RewardContract(bad).outcomes())
    assert len(found) == 7
    failed = [outcome.title for outcome in found if outcome.error]
    assert "A score does not depend on the other images of the batch" in failed
    assert "One finite float32 score per image" not in failed


@pytest.mark.parametrize(
    "contract",
    [
        RewardContract(made(toy.Redness)),
        SamplerContract(made(toy.ToySteps), differentiable=True),
        BackendContract(model(), differentiable=True),
    ],
)
def test_every_check_is_on_the_list(contract):
    """What takes nothing and returns nothing is a check; one that is not listed would never run."""
    listed = {check.__name__ for check in contract.checks()}
    bare = {"self"}
    written = {
        name
        for name, method in vars(type(contract)).items()
        if callable(method) and set(signature(method).parameters) == bare and method.__annotations__["return"] == "None"
    }
    assert written == listed


def test_the_world_has_only_what_it_was_given():
    with installed() as found:
        assert all(kind.startswith("toy-") for kinds in found.parts.values() for kind in kinds)
    misspelt = SimpleNamespace(t2ialign_reward=t2ialign.hookimpl(lambda register: None))
    with pytest.raises(AssertionError, match="does not load"), installed(misspelt):
        pass


def test_the_toy_search_compares_its_candidates_before_it_normalises(tmp_path):
    """Standardising all candidates' scores together changes no choice; each on its own would make them all equal."""
    plain, standardised = (
        run_spec(tmp_path, reward=[{"kind": "toy-redness", "normalise": normalise}]) for normalise in ("none", "zscore")
    )
    assert standardised.metrics() == plain.metrics()
