"""Noise in a window of the sampler's steps (MixGRPO, arXiv 2507.21802; Flow-GRPO-Fast); the others follow the ODE."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from t2ialign import Denoiser, Prediction, StepSampler
from t2ialign.parts.sampler import Transition
from t2ialign.tensors import seeding
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_rl.config import FlowGrpoConfig


def window_start(config: FlowGrpoConfig, index: int, end: int, seed: int) -> int:
    """Where the window is in a step of the run.

    A sliding one begins again before it would be empty; its last places hold fewer steps than ``config.window``.

    Args:
        index: of the run's step.
        end: windows hold steps of the sampler before this one.
    """
    first, size = min(config.window_first, end - 1), config.window or end
    match config.window_course:
        case "sliding":
            places = range(first, end, config.window_stride)
            stays = [stay(config, place, end) for place in places]
            left = index % sum(stays)
            return next(place for place, until in zip(places, accumulate(stays), strict=True) if left < until)
        case "random":
            source = seeding.generator(seeding.derive(seed, "grpo-window", index))
            return first + int(torch.randint(max(1, end - first - size + 1), (), generator=source))
    return first


def stay(config: FlowGrpoConfig, place: int, end: int) -> int:
    """Steps of the run for which a sliding window stays at a step of the sampler, at least 1."""
    every = config.window_every
    match config.window_decay:
        case "linear":
            return max(1, int(every * (1 - place / end) + place / end))
        case "exponential":
            return math.ceil(every * math.exp(-config.window_decay_rate * max(0, place - config.window_decay_from)))
    return every


class Windowed(StepSampler):
    """A stochastic sampler in steps ``start`` to ``stop`` - 1, and x_s = alpha_s x0 + sigma_s eps in all others.

    Where images of a group start from the same noise, they are one until the window: it is drawn once.
    """

    def __init__(self, inner: StepSampler, start: int, stop: int) -> None:
        super().__init__(inner.config, inner.device)
        self.inner, self.start, self.stop, self.label = inner, start, stop, inner.label

    def times(self, path: DiffusionPath) -> Tensor:
        return self.inner.times(path)

    def transition(
        self, path: DiffusionPath, x: Tensor, prediction: Prediction, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        grid = self.times(path).to(t.device)
        inside = (t <= grid[self.start]) & (t > grid[self.stop])
        mean, std = self.inner.transition(path, x, prediction, t, s)
        alpha, sigma = path.coefficients(s)
        ode = alpha * prediction.x0 + sigma * prediction.eps
        return torch.where(inside, mean, ode), torch.where(inside, std, torch.zeros_like(std))

    def walk(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Iterator[Transition]:
        return super().walk(Shared(denoiser, noise, self.start + 1), noise, seeds)


class Shared(Denoiser):
    """A denoiser that asks the network once for rows that begin with the same noise, as long as they are the same."""

    def __init__(self, inner: Denoiser, noise: Tensor, calls: int) -> None:
        """
        Args:
            inner: bound to n rows; equal noise means an equal prompt.
            calls: the first calls, in which such rows are equal.
        """
        super().__init__(inner.path, inner.conditioning)
        self.inner, self.calls = inner, calls
        kinds, self.member = torch.unique(noise.flatten(1), dim=0, return_inverse=True)
        self.heads = torch.stack([(self.member == kind).nonzero()[0, 0] for kind in range(len(kinds))])
        self.once = inner if len(kinds) == len(noise) else inner.rows(self.heads.cpu())

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        if self.evaluations > self.calls or self.once is self.inner:
            return self.inner.predict(x, t)
        found = self.once.predict(x[self.heads], t[self.heads])
        return Prediction(found.x0[self.member], found.eps[self.member])

    def rows(self, index: Tensor | Sequence[int]) -> Denoiser:
        return self.inner.rows(index)
