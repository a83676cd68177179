"""EvoSearch (arXiv 2505.17618) of many images at once; the algorithm is ``evolution``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from t2ialign import StepSampler, seeding
from t2ialign.problem.problem import Problem
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_reno.noise_search import NoiseSearch
from t2ialign_reno.searches import Search
from t2ialign_search.config import EvoConfig
from t2ialign_search.evolution import Evolution, Phase, evolve
from t2ialign_search.trajectories import Result, TrajectorySearch
from t2ialign_search.walk import Leap, Walk, normal


class Seeded:
    """``evolution.Draws``: every draw from a seed of its own. The first member is what plain sampling draws."""

    def __init__(self, problem: Problem, searches: Sequence[Search], passes: Sequence[int]) -> None:
        self.shape, self.device = problem.backend.info.latent_shape, problem.device
        run = problem.spec.run.seed
        self.plain = [search.seed if number == 0 else None for search, number in zip(searches, passes, strict=True)]
        self.seeds = [
            seeding.derive(run, "evo-search", search.item.prompt, search.seed, number)
            for search, number in zip(searches, passes, strict=True)
        ]

    def initial(self, count: int) -> Tensor:
        return self._normal(count, lambda plain: plain, "initial")

    def step(self, phase: Phase, generation: int, i: int, count: int) -> Tensor:
        first = phase == "before" or (phase == "roll" and generation == 0)
        plain = (lambda seed: seeding.derive(seed, "sampler", i)) if first else None
        return self._normal(count, plain, phase, generation, i)

    def tournaments(self, generation: int, members: int, drawn: int, count: int) -> Tensor:
        def of(seed: int) -> Tensor:
            source = seeding.generator(seeding.derive(seed, "tournaments", generation))
            return torch.stack([torch.randperm(members, generator=source)[:drawn] for _ in range(count)])

        return torch.stack([of(seed) for seed in self.seeds]).to(self.device)

    def mutation(self, generation: int, count: int) -> Tensor:
        return self._normal(count, None, "mutation", generation)

    def _normal(self, count: int, plain: Callable[[int], int] | None, *words: str | int) -> Tensor:
        seeds = [[seeding.derive(seed, *words, member) for member in range(count)] for seed in self.seeds]
        for row, own in zip(seeds, self.plain, strict=True):
            if plain is not None and own is not None:
                row[0] = plain(own)
        return normal(seeds, self.shape, self.device)


class Evolving(TrajectorySearch):
    """Each pass starts from a population of its own."""

    def __init__(self, problem: Problem, config: EvoConfig) -> None:
        super().__init__(problem)
        steps = config.steps(problem.spec)
        self.stepwise = steps > 1 and isinstance(problem.sampler, StepSampler)
        self.options = Evolution(
            config.schedule(steps if self.stepwise else 1),
            config.population_size_schedule,
            config.elite_size,
            config.mutation_rate,
            config.tournament_frac,
            config.reentry,
        )

    def search(self, conditioning: Conditioning, searches: Sequence[Search], passes: Sequence[int]) -> Result:
        seeds = [search.seed for search in searches]
        walk = Walk(self.problem, conditioning) if self.stepwise else Leap(self.problem, conditioning, seeds)
        best = evolve(walk, Seeded(self.problem, searches, passes), self.options)
        assert best.latents is not None
        spent = torch.full_like(best.fitness, walk.evaluations / len(seeds))
        return Result(best.latents, best.fitness, best.raw, {"evaluations": spent})


class EvoSearch(NoiseSearch):
    """Evolves noises and the latents on the way; any sampler, any reward, no gradients."""

    Config = EvoConfig

    def method(self) -> Evolving:
        return Evolving(self.problem, self.config)
