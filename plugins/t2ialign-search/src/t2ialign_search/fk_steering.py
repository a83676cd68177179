"""FK steering (arXiv 2501.06848) of many images at once, each with k particles.

For every step i:  x <- sampler's stochastic step;  at an event:  r = reward(decode(predicted x0))
                   weights *= G(r);  where few particles carry the weight, draw k of them and go on with equal weights
At the end the images are scored, and the best is the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from t2ialign import seeding
from t2ialign.problem.problem import Problem
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_reno.noise_search import NoiseSearch
from t2ialign_reno.searches import Search
from t2ialign_search import particles
from t2ialign_search.config import FkConfig
from t2ialign_search.evolution import Best
from t2ialign_search.particles import Particles
from t2ialign_search.trajectories import Result, TrajectorySearch
from t2ialign_search.walk import Walk, normal, pick, step_sampler


@dataclass(frozen=True)
class Slots:
    """The randomness of B searches with k places each; a place's noise is its own, whoever comes to stand there.

    The first place draws what plain sampling draws from the search's seed.
    """

    seeds: list[list[int]]
    shape: Sequence[int]
    device: torch.device

    @classmethod
    def of(cls, problem: Problem, searches: Sequence[Search], passes: Sequence[int], count: int) -> Slots:
        def seed(search: Search, number: int, slot: int) -> int:
            if number == slot == 0:
                return search.seed
            run = problem.spec.run.seed
            return seeding.derive(run, "fk-particle", search.item.prompt, search.seed, number, slot)

        rows = zip(searches, passes, strict=True)
        seeds = [[seed(search, number, slot) for slot in range(count)] for search, number in rows]
        return cls(seeds, problem.backend.info.latent_shape, problem.device)

    def initial(self) -> Tensor:
        """(B, k, *latent)."""
        return normal(self.seeds, self.shape, self.device)

    def step(self, i: int) -> Tensor:
        """(B, k, *latent)."""
        derived = [[seeding.derive(seed, "sampler", i) for seed in row] for row in self.seeds]
        return normal(derived, self.shape, self.device)

    def uniforms(self, i: int) -> Tensor:
        """(B, k), in [0, 1)."""
        sources = [seeding.generator(seeding.derive(row[0], "fk-resample", i)) for row in self.seeds]
        drawn = torch.stack([torch.rand(len(self.seeds[0]), generator=source) for source in sources])
        return drawn.to(self.device)


def steer(walk: Walk, slots: Slots, config: FkConfig) -> Result:
    """One pass of B searches with k particles each."""
    count = config.particles
    x = walk.start(slots.initial())
    now = Particles.start((len(x), count), particles.starting_state(config.potential), x.device)
    looks = particles.events(walk.steps, *config.schedule(walk.steps))
    if not config.resample_last:
        looks.remove(walk.steps - 1)
    sizes, resamplings = [], torch.zeros(len(x), device=x.device)
    for i in range(walk.steps):
        x, x0 = walk.step(x, i, partial(slots.step, i))
        if i not in looks:
            continue
        last = i == walk.steps - 1
        now, log_g = particles.weigh(now, walk.score(x0).total, config.potential, config.lmbda, last)
        probabilities = particles.weights(now.log_weights)
        size = particles.effective_size(probabilities)
        where = size < config.ess_threshold * count
        if not config.adaptive and not last:
            where = torch.ones_like(where)
        index = particles.draw(probabilities, slots.uniforms(i), config.resampling)
        now = particles.resampled(now, log_g, index, where)
        x = torch.where(where.view(-1, *(1,) * (x.ndim - 1)), pick(x, index), x)
        sizes.append(size)
        resamplings += where
    best = Best()
    best.see(x, walk.score(x))
    assert best.latents is not None
    numbers = {"ess": torch.stack(sizes).mean(0)} if sizes else {}
    return Result(best.latents, best.fitness, best.raw, {**numbers, "resamplings": resamplings})


class Steering(TrajectorySearch):
    """Each pass has particles of its own."""

    def __init__(self, problem: Problem, config: FkConfig) -> None:
        super().__init__(problem)
        self.config = config
        step_sampler(problem)  # told before anything is drawn

    def search(self, conditioning: Conditioning, searches: Sequence[Search], passes: Sequence[int]) -> Result:
        slots = Slots.of(self.problem, searches, passes, self.config.particles)
        return steer(Walk(self.problem, conditioning), slots, self.config)


class FkSteering(NoiseSearch):
    """Particles of every image, resampled by reward while they are drawn; any reward, nothing is trained."""

    Config = FkConfig

    def method(self) -> Steering:
        return Steering(self.problem, self.config)
