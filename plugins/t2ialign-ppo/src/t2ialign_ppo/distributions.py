"""Random solver tables: one independent factor per interval, and no dependence on prompt or state.

Positions come from segments g ~ Dirichlet(K + 1): r_k = g_1 + ... + g_k. Weights are Dirichlet(K). Scales, where a
policy has them, are log-normal as published, or bounded: s = 1 - R + 2 R b with b ~ Beta, so that no draw and no mean
leaves [1 - R, 1 + R].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Dirichlet, LogNormal, kl_divergence

from t2ialign_solvers.table import SolverTable

#: Smallest part of a drawn simplex: log-densities stay finite.
SMALLEST = 1e-6
Generator = np.random.Generator


class Scales(Protocol):
    """Distribution of one factor per probe, (N, K)."""

    @property
    def mean(self) -> Tensor: ...
    def draw(self, source: Generator) -> Tensor: ...
    def log_prob(self, scales: Tensor) -> Tensor:
        """Of every interval: (..., N, K) -> (..., N)."""
        ...

    def entropy(self) -> Tensor:
        """Of every interval (N,)."""
        ...

    def kl(self, other: Scales) -> Tensor:
        """Of every interval (N,)."""
        ...


class LogNormalScales:
    """Unbounded: ln s ~ N(loc, std^2).

    Args:
        loc, log_std: (N, K).
    """

    def __init__(self, loc: Tensor, log_std: Tensor) -> None:
        self.distribution = LogNormal(loc, log_std.exp())

    @property
    def mean(self) -> Tensor:
        return self.distribution.mean

    def draw(self, source: Generator) -> Tensor:
        base = self.distribution
        return torch.exp(base.loc + base.scale * torch.from_numpy(source.standard_normal(base.loc.shape)))

    def log_prob(self, scales: Tensor) -> Tensor:
        return self.distribution.log_prob(scales).sum(-1)

    def entropy(self) -> Tensor:
        return self.distribution.entropy().sum(-1)

    def kl(self, other: Scales) -> Tensor:
        assert isinstance(other, LogNormalScales)
        return kl_divergence(self.distribution, other.distribution).sum(-1)


class BoundedScales:
    """s = 1 - R + 2 R b, (b, 1 - b) ~ Dirichlet(alpha).

    Densities are those of b: the map is the same for every policy, so that ratios and KL do not see it.

    Args:
        alpha: (N, K, 2).
        bound: R.
    """

    def __init__(self, alpha: Tensor, bound: float) -> None:
        self.distribution = Dirichlet(alpha)
        self.bound = bound

    @property
    def mean(self) -> Tensor:
        return self._scales(self.distribution.mean)

    def draw(self, source: Generator) -> Tensor:
        return self._scales(draw_simplex(self.distribution, source))

    def log_prob(self, scales: Tensor) -> Tensor:
        part = ((scales - 1 + self.bound) / (2 * self.bound)).clamp(SMALLEST / 2, 1 - SMALLEST / 2)
        return self.distribution.log_prob(torch.stack([part, 1 - part], -1)).sum(-1)

    def entropy(self) -> Tensor:
        return self.distribution.entropy().sum(-1)

    def kl(self, other: Scales) -> Tensor:
        assert isinstance(other, BoundedScales)
        return kl_divergence(self.distribution, other.distribution).sum(-1)

    def _scales(self, parts: Tensor) -> Tensor:
        return 1 - self.bound + 2 * self.bound * parts[..., 0]


class Draws(NamedTuple):
    """Tables as their densities see them; a leading axis B for B of them.

    Attributes:
        segments: (..., N, K + 1), each row sums to 1.
        weights: (..., N, K), each row sums to 1.
        scale_dir, scale_time: (..., N, K), or None where the policy has none.
    """

    segments: Tensor
    weights: Tensor
    scale_dir: Tensor | None = None
    scale_time: Tensor | None = None

    def rows(self, index: Tensor) -> Draws:
        """Some of B tables."""
        scales = [None if part is None else part[index] for part in (self.scale_dir, self.scale_time)]
        return Draws(self.segments[index], self.weights[index], *scales)

    def table(self, like: SolverTable) -> SolverTable:
        """As float32 solver tables, with the settings of ``like`` and its scales where there are none."""
        positions = self.segments[..., :-1].cumsum(-1).float().clamp(SMALLEST, 1 - SMALLEST)
        scales = [
            (own if scale is None else scale).float().expand_as(positions)
            for own, scale in ((like.scale_dir, self.scale_dir), (like.scale_time, self.scale_time))
        ]
        return like.like(positions=positions, weights=self.weights.float(), scale_dir=scales[0], scale_time=scales[1])


@dataclass(frozen=True)
class TableDistribution:
    """A distribution over tables of N intervals and K probes."""

    segments: Dirichlet
    weights: Dirichlet
    scale_dir: Scales | None = None
    scale_time: Scales | None = None

    @property
    def mean(self) -> Draws:
        """The table that evaluation and export use."""
        scales = (None if part is None else part.mean for part in (self.scale_dir, self.scale_time))
        return Draws(self.segments.mean, self.weights.mean, *scales)

    def draw(self, seeds: Sequence[int]) -> Draws:
        """One table per seed; a table depends on its own seed alone."""
        sources = [np.random.default_rng(seed) for seed in seeds]
        segments = torch.stack([draw_simplex(self.segments, source) for source in sources])
        weights = torch.stack([draw_simplex(self.weights, source) for source in sources])
        scales = [
            None if part is None else torch.stack([part.draw(source) for source in sources])
            for part in (self.scale_dir, self.scale_time)
        ]
        return Draws(segments, weights, *scales)

    def log_prob(self, draws: Draws) -> Tensor:
        """Log-density of every interval: (B, N)."""
        total = self.segments.log_prob(draws.segments) + self.weights.log_prob(draws.weights)
        for part, scales in ((self.scale_dir, draws.scale_dir), (self.scale_time, draws.scale_time)):
            if part is not None and scales is not None:
                total = total + part.log_prob(scales)
        return total

    def entropy(self) -> Tensor:
        """Of every interval (N,)."""
        return sum((part.entropy() for part in self._factors()), self.weights.entropy())

    def kl(self, other: TableDistribution) -> Tensor:
        """KL(self, other) of every interval (N,)."""
        total = kl_divergence(self.segments, other.segments) + kl_divergence(self.weights, other.weights)
        for mine, theirs in ((self.scale_dir, other.scale_dir), (self.scale_time, other.scale_time)):
            if mine is not None and theirs is not None:
                total = total + mine.kl(theirs)
        return total

    def _factors(self) -> list[Dirichlet | Scales]:
        return [part for part in (self.segments, self.scale_dir, self.scale_time) if part is not None]


def draw_simplex(distribution: Dirichlet, source: Generator) -> Tensor:
    """A draw per row of the distribution's parameters, no part below ``SMALLEST``.

    Gamma variates, normalised; very small parameters may give a row of zeros, which becomes even.
    """
    gammas = torch.from_numpy(source.standard_gamma(distribution.concentration.detach().numpy()))
    parts = (gammas / gammas.sum(-1, keepdim=True)).nan_to_num(1.0).clamp(min=SMALLEST)
    return parts / parts.sum(-1, keepdim=True)
