"""B searches with K latents each, through the steps of a sampler together: what searches along trajectories work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from t2ialign import Prediction, StepSampler, UsageError, seeding
from t2ialign.parts.sampler import checked_latents
from t2ialign.problem.problem import Problem
from t2ialign.problem.transitions import noise_levels
from t2ialign.tensors.batching import split
from t2ialign.tensors.conditioning import Conditioning


class Scored(NamedTuple):
    """What the optimised rewards say of latents: their mix (B, K), and each one (B, K) by name."""

    total: Tensor
    raw: dict[str, Tensor]


class Walk:
    """Step by step, with the noise that the caller draws. Nothing here has gradients.

    Attributes:
        steps: T.
        std: of each step's noise (T,).
        evaluations: of the network so far, summed over all latents.
    """

    def __init__(self, problem: Problem, conditioning: Conditioning) -> None:
        """
        Args:
            problem: with a ``StepSampler``.
            conditioning: one row per search.
        """
        self.problem, self.sampler, self.conditioning = problem, step_sampler(problem), conditioning
        self.denoiser = problem.backend.denoiser(conditioning)
        self.path = self.denoiser.path
        self.times = self.sampler.times(self.path).to(problem.device)
        self.steps = len(self.times) - 1
        self.std = noise_levels(self.sampler, self.path, self.times)
        self.evaluations = 0

    @property
    def noisy(self) -> bool:
        """Whether two latents that are equal part again."""
        return bool((self.std > 0).any())

    def start(self, noise: Tensor) -> Tensor:
        """The states before the first step, of unit noise (B, K, *latent)."""
        return self.path.prior(noise, self.times[0])

    @torch.no_grad()
    def step(self, x: Tensor, i: int, noise: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Step ``i`` from states (B, K, *latent): where it leads, and the clean latents predicted on the way.

        Args:
            noise: draws unit noise (B, K, *latent); called where the step has any.
        """
        t, s = self.times[i], self.times[i + 1]
        prediction = self._predict(x, t)
        mean, std = self.sampler.transition(self.path, x, prediction, t, s)
        return (mean + std * noise() if bool(self.std[i] > 0) else mean), prediction.x0

    def renoising(self, i: int) -> tuple[Tensor, Tensor]:
        """(a, b) with which a x + b n brings states after step ``i`` back to the noise level before it."""
        (alpha, sigma), (alpha_after, sigma_after) = (self.path.coefficients(t) for t in self.times[i : i + 2])
        a = alpha / alpha_after
        return a, torch.sqrt((sigma**2 - (a * sigma_after) ** 2).clamp(min=0))

    @torch.no_grad()
    def score(self, x0: Tensor) -> Scored:
        """Rewards of clean latents (B, K, *latent)."""
        problem, flat, rows = self.problem, x0.flatten(0, 1), self._rows(x0)
        prompts = [self.conditioning.prompts[row] for row in rows]

        def run(size: int) -> dict[str, Tensor]:
            parts = [
                problem.rewards.score(problem.backend.decode(flat[part]), prompts[part], optimised_only=True)
                for part in split(len(flat), size)
            ]
            return {name: torch.cat([scores[name] for scores in parts]) for name in parts[0]}

        raw = {name: values.view(x0.shape[:2]) for name, values in problem.retrying(run).items()}
        return Scored(problem.rewards.combine(raw), raw)

    def _predict(self, x: Tensor, t: Tensor) -> Prediction:
        flat, rows = x.flatten(0, 1), self._rows(x)

        def run(size: int) -> Prediction:
            parts = [self.denoiser.rows(rows[part])(flat[part], t) for part in split(len(flat), size)]
            return Prediction(*map(torch.cat, zip(*parts, strict=True)))

        self.evaluations += len(flat)
        return Prediction(*(tensor.view_as(x) for tensor in self.problem.retrying(run)))

    @staticmethod
    def _rows(x: Tensor) -> list[int]:
        """The search of each row of the flattened (B, K, ...)."""
        return [row // x.shape[1] for row in range(x.shape[0] * x.shape[1])]


class Leap(Walk):
    """Any sampler, as one step from noise to clean latents; its own draws, if it has any, are those of the searches."""

    def __init__(self, problem: Problem, conditioning: Conditioning, seeds: Sequence[int]) -> None:
        assert problem.sampler is not None
        self.problem, self.conditioning, self.seeds = problem, conditioning, seeds
        self.any_sampler, self.denoiser = problem.sampler, problem.backend.denoiser(conditioning)
        self.steps, self.std, self.evaluations = 1, torch.zeros(1), 0

    def start(self, noise: Tensor) -> Tensor:
        return noise

    @torch.no_grad()
    def step(self, x: Tensor, i: int, noise: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        flat, rows = x.flatten(0, 1), self._rows(x)
        seeds = [self.seeds[row] for row in rows]

        def part(some: slice) -> Tensor:
            latents = self.any_sampler.sample(self.denoiser.rows(rows[some]), flat[some], seeds[some])
            return checked_latents(self.any_sampler, latents, flat[some])

        def run(size: int) -> Tensor:
            return torch.cat([part(some) for some in split(len(flat), size)])

        self.evaluations += len(flat) * self.problem.spec.sampler_config.evaluations()
        x0 = self.problem.retrying(run).view_as(x)
        return x0, x0


def step_sampler(problem: Problem) -> StepSampler:
    """The problem's sampler.

    Raises:
        UsageError: its steps are no Gaussian transitions.
    """
    if not isinstance(problem.sampler, StepSampler):
        kind = problem.spec.sampler.kind if problem.spec.sampler else "none"
        raise UsageError(f"sampler.kind = '{kind}': the search needs steps with noise, for example 'ddim' with eta = 1")
    return problem.sampler


def normal(seeds: Sequence[Sequence[int]], shape: Sequence[int], device: torch.device | str) -> Tensor:
    """Unit noise (B, K, *shape), each from its own seed."""
    flat = [seed for row in seeds for seed in row]
    return seeding.normal(flat, shape, device).view(len(seeds), -1, *shape)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Some of the members of every search: (B, K, ...) and indices (B, n) to (B, n, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]
