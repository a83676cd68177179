"""The E-step on a problem: its backend, sampler and rewards, on this rank's share of the trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from t2ialign import StepSampler, UsageError
from t2ialign.problem.problem import Problem
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.distributed import World
from t2ialign_dav import e_step
from t2ialign_dav.config import WeightingConfig
from t2ialign_dav.cost import Cost
from t2ialign_dav.e_step import Trajectories
from t2ialign_dav.model import Draws, Model

#: Images that the unit of the reward is measured on.
MEASURED = 64
#: Images of a step that are worth a look.
SHOWN = 8


def step_sampler(problem: Problem) -> StepSampler:
    """The problem's sampler.

    Raises:
        UsageError: its steps are no Gaussian transitions.
    """
    if not isinstance(problem.sampler, StepSampler):
        kind = problem.spec.sampler.kind if problem.spec.sampler else "none"
        raise UsageError(f"sampler.kind = '{kind}': DAV needs Gaussian steps, for example 'ddim' with eta = 1")
    return problem.sampler


def reward_unit(problem: Problem, unit: Literal["std", "raw"]) -> float:
    """1, or the standard deviation of the base model's rewards over the images of the first steps (if not 0)."""
    if unit == "raw":
        return 1.0
    score, values = reward(problem), torch.empty(0)
    for step in count():
        batch = problem.draw(step)
        with problem.base():
            images = problem.generate(batch.conditioning, batch.seeds)
        values = torch.cat([values, score(images, batch.conditioning.prompts).cpu()])
        if len(values) >= MEASURED:
            break
    return values[values.isfinite()].std().item() or 1.0


def reward(problem: Problem, unit: float = 1.0) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """The mix of the optimised rewards in ``unit``s: images and prompts to (B,)."""

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return problem.rewards.combine(problem.rewards.score(images, prompts, optimised_only=True)) / unit

    return score


def explore(
    problem: Problem,
    search: Callable[[Model, Draws], Trajectories],
    conditioning: Conditioning,
    seeds: Sequence[int],
    unit: float,
    world: World,
) -> tuple[Trajectories, Cost]:
    """One trajectory for every row of the conditioning, each searched by one of the ranks.

    Args:
        unit: what rewards are divided by.
        world: the ranks that call this.

    Returns:
        All trajectories, and what this rank's cost on average.
    """
    backend = problem.backend
    mine = world.mine(len(seeds))

    def run(micro_batch: int) -> tuple[Trajectories, Cost]:
        model = Model(backend.denoiser(conditioning[mine]), backend.decode, reward(problem, unit), micro_batch)
        draws = Draws([seeds[row] for row in mine], backend.info.latent_shape, backend.device)
        return search(model, draws), model.cost.per(len(mine))

    found, cost = problem.retrying(run)
    return found.map(lambda rows: world.collect(rows, len(seeds))), cost


def lockstep_search(config: WeightingConfig, model: Model, sampler: StepSampler, draws: Draws) -> Trajectories:
    """``e_step.search`` with the options of a spec."""
    posterior = e_step.Posterior(
        config.alpha, config.gamma, config.value_gradient, config.guidance_cap, config.importance_sampling
    )
    return e_step.search(model, sampler, draws, posterior, config.particles, config.initial)


def report(
    problem: Problem, conditioning: Conditioning, seeds: Sequence[int], found: Trajectories, cost: Cost
) -> dict[str, float]:
    """Metrics of a search: rewards and diversity of its images, its diagnostics, and what a trajectory cost."""
    prompts, rewards = conditioning.prompts, problem.rewards
    scores = rewards.score(found.images, prompts, micro_batch=problem.micro_batch)
    scores |= rewards.compare(found.images, prompts, problem.references(conditioning, seeds))
    means = {f"reward/{name}": values[values.isfinite()] for name, values in scores.items()}
    means |= {f"search/{name}": values for name, values in found.diagnostics.items()}
    return {name: values.mean().item() for name, values in means.items() if len(values)} | {
        f"search/{name}": float(number) for name, number in asdict(cost).items()
    }
