"""What several optimizers share: rollouts, averages of the LoRA, gradient accumulation."""

from __future__ import annotations

import shutil
from contextlib import suppress

import pytest
import torch
from torch import nn

from t2ialign.parts.sampler import StepSampler
from t2ialign.problem.optimizer import LoraOptimizer, load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.tensors.accumulation import accumulate
from t2ialign.tensors.distributed import World
from t2ialign.tensors.gaussian import log_prob

QUIET = Display(quiet=True)


class Noisy(StepSampler):
    """Three steps, the last one without noise."""

    def __init__(self):
        pass

    def times(self, path):
        return torch.tensor([1.0, 0.7, 0.3, 0.0])

    def transition(self, path, x, prediction, t, s):
        return (1 - s) * prediction.x0 + s * prediction.eps, torch.where(s > 0, 0.1, 0.0)


def test_a_rollout_keeps_the_trajectory_and_its_densities(toy_spec):
    problem = assemble(specs.load(toy_spec()))
    batch = problem.draw(0)
    found = problem.rollout(batch.conditioning, batch.seeds, Noisy(), trajectory=True)
    assert found.trajectory.shape == (40, 4, 3, 4, 4)
    assert torch.equal(found.trajectory[:, -1], found.latents)
    assert torch.equal(found.images, problem.backend.decode(found.latents))
    assert torch.equal(found.images, problem.rollout(batch.conditioning, batch.seeds, Noisy()).images)
    denoiser, sampler = problem.backend.denoiser(batch.conditioning), Noisy()
    times = sampler.times(denoiser.path)
    for i in range(2):
        x = found.trajectory[:, i]
        mean, std = sampler.transition(denoiser.path, x, denoiser(x, times[i]), times[i], times[i + 1])
        assert torch.allclose(found.log_probs[:, i], log_prob(found.trajectory[:, i + 1], mean, std), atol=1e-5)
    assert not found.log_probs[:, 2].any()


def test_a_rollout_does_not_depend_on_its_micro_batches(toy_spec):
    problem = assemble(specs.load(toy_spec()))
    batch = problem.draw(0)
    whole = problem.rollout(batch.conditioning, batch.seeds, Noisy(), trajectory=True)
    problem.micro_batch = 7
    parts = problem.rollout(batch.conditioning, batch.seeds, lambda rows: Noisy(), trajectory=True)
    for name in ("latents", "images", "trajectory", "log_probs"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5), name


def test_a_rollout_that_does_not_fit_is_drawn_in_smaller_parts(toy_spec, monkeypatch):
    problem = assemble(specs.load(toy_spec()))
    batch, decode = problem.draw(0), problem.backend.decode

    def small(latents):
        if len(latents) > 10:
            raise torch.OutOfMemoryError
        return decode(latents)

    monkeypatch.setattr(problem.backend, "decode", small)
    assert len(problem.rollout(batch.conditioning, batch.seeds).images) == 40
    assert problem.micro_batch == 8


def test_a_sampler_without_transitions_has_no_trajectory(toy_spec):
    problem = assemble(specs.load(toy_spec()))
    batch = problem.draw(0)
    with pytest.raises(ValueError, match="no StepSampler"):
        problem.rollout(batch.conditioning, batch.seeds, trajectory=True)


def test_swapped_tensors_come_back(toy_spec):
    problem = assemble(specs.load(toy_spec()))
    own = {name: p.detach().clone() for name, p in problem.adapter.parameters().items()}
    batch = problem.draw(0)
    before = problem.generate(batch.conditioning, batch.seeds)
    with suppress(RuntimeError), problem.adapter.swapped({n: t + 1 for n, t in own.items()}):
        assert not torch.equal(problem.generate(batch.conditioning, batch.seeds), before)
        raise RuntimeError("something went wrong inside")
    assert torch.equal(problem.generate(batch.conditioning, batch.seeds), before)


EMA = {"optimizer": {"kind": "toy-search", "ema": 0.9}}


def test_an_average_is_what_a_run_delivers(toy_spec):
    problem = assemble(specs.load(toy_spec(**EMA)))
    optimizer = load_optimizer(problem)
    assert isinstance(optimizer, LoraOptimizer)
    expected = {name: p.detach().clone() for name, p in problem.adapter.parameters().items()}
    for index, decay in enumerate((1 / 10, 2 / 11, 3 / 12)):
        optimizer.step(index)
        optimizer.after_step(index)
        expected = {n: decay * expected[n] + (1 - decay) * p for n, p in problem.adapter.parameters().items()}
    batch = problem.draw(0)
    with problem.adapter.swapped(expected):
        averaged = problem.generate(batch.conditioning, batch.seeds)
    found = optimizer.generate(batch.conditioning, batch.seeds)
    assert torch.allclose(found, averaged, atol=1e-6)
    assert not torch.allclose(found, problem.generate(batch.conditioning, batch.seeds), atol=1e-4)


def test_a_resumed_average_equals_an_unbroken_one(toy_spec):
    from safetensors.torch import load_file

    whole = runner.start(specs.load(toy_spec(**EMA)), QUIET)
    again = runner.start(specs.load(toy_spec(**EMA)), QUIET)
    for folder in ("step-000004", "../export", "../evaluation"):
        shutil.rmtree(again.path / "checkpoints" / folder)
    runner.resume(again.path, QUIET)
    exports = [load_file(run.path / "export" / "pytorch_lora_weights.safetensors") for run in (whole, again)]
    assert exports[0].keys() == exports[1].keys()
    assert all(torch.equal(exports[0][name], exports[1][name]) for name in exports[0])
    last = load_file(whole.path / "checkpoints" / "step-000004" / "state.safetensors")
    assert not torch.equal(last["0.lora_B.weight"], exports[0]["transformer.0.lora_B.weight"])


@pytest.mark.parametrize("micro_batch", [1, 3, 10])
def test_accumulated_gradients_are_those_of_the_mean(micro_batch):
    weight, x = nn.Parameter(torch.tensor([1.0, -2.0])), torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([0, 2, 3, 5, 7, 8, 9])

    def losses(part):
        error = (x[part] @ weight) ** 2
        return {"total": error + weight.square().sum(), "error": error}

    means, fits = accumulate([weight], rows, losses, ["error"], micro_batch, World())
    found = weight.grad.clone()
    weight.grad = None
    losses(rows)["total"].mean().backward()
    assert torch.allclose(found, weight.grad)
    assert means["error"] == pytest.approx(((x[rows] @ weight) ** 2).mean().item(), rel=1e-5)
    assert fits == micro_batch
