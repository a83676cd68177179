"""CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772) for small modules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign_eggroll.shaping import Fitness
from t2ialign_eggroll.trainers.covariance import CovarianceTrainer
from t2ialign_eggroll.trainers.scoring import FitnessFunction


class CMAESTrainer(CovarianceTrainer):
    """Members m + sigma s A z; the covariance A A^T follows the directions that score well, s the length of the path.

    For up to some hundreds of trained numbers, or ``covariance.MOST`` with patience: a generation costs O(N D^2),
    refreshing A O(D^3). With ``separable`` (sep-CMA-ES) the covariance is diagonal and any size is cheap, as with
    ``SNESTrainer``. A member without a finite score has weight 0.

    Args:
        active: bad members push the covariance away.
        csa_squared: compare the squared length of the path with its expectation.
        options: ``population_size`` and ``separable``, see ``CovarianceTrainer``, and those of ``ESTrainer``.

    Attributes:
        covariance: C (D, D), or (D,) if separable.
    """

    NAME, ADVICE = "CMA-ES", "separable=True, or EggrollTrainer"
    SHAPING = "centred-rank"
    KEPT = ("covariance", "factor", "path_sigma", "path_c")

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        active: bool = True,
        csa_squared: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, fitness_fn, **options)
        self.csa_squared = csa_squared
        self._constants(self.members.count, self.size, active)
        self.covariance = self.factor.clone()
        self.path_sigma = torch.zeros(self.size, dtype=torch.float64)
        self.path_c = torch.zeros(self.size, dtype=torch.float64)

    def _constants(self, n: int, d: int, active: bool) -> None:
        """The tutorial's weights and rates for N members in D dimensions."""
        raw = math.log((n + 1) / 2) - torch.arange(1, n + 1, dtype=torch.float64).log()
        self.parents = n // 2
        good, bad = raw[: self.parents], raw[self.parents :]
        mu = self.mu_eff = (good.sum().square() / good.square().sum()).item()
        mu_bad = (bad.sum().square() / bad.square().sum().clamp(min=1e-300)).item()
        self.c_sigma = (mu + 2) / (d + mu + 3)
        self.damp = 1 + 2 * max(0.0, math.sqrt((mu - 1) / (d + 1)) - 1) + self.c_sigma
        if self.separable:
            self.c_c = (1 + 1 / d + mu / d) / (math.sqrt(d) + 1 / d + 2 * mu / d)
            self.c_1 = 1 / (d + 2 * math.sqrt(d) + mu / d)
            self.c_mu = (0.25 + mu + 1 / mu - 2) / (d + 4 * math.sqrt(d) + mu / 2)
        else:
            self.c_c = (4 + mu / d) / (d + 4 + 2 * mu / d)
            self.c_1 = min(1, n / 6) * 2 / ((d + 1.3) ** 2 + mu)
            self.c_mu = min(1 - self.c_1, 2 * (0.25 + mu - 2 + 1 / mu) / ((d + 2) ** 2 + mu))
        alpha = min(1 + self.c_1 / self.c_mu, 1 + 2 * mu_bad / (mu + 2), (1 - self.c_mu - self.c_1) / (d * self.c_mu))
        away = alpha * bad / bad.abs().sum().clamp(min=1e-300) if active else torch.zeros_like(bad)
        self.rank_weights = torch.cat([good / good.sum(), away])
        self.chi = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d**2))  # E |z|
        self.refresh_every = max(1, int(1 / (10 * d * (self.c_1 + self.c_mu))))

    def compute_update(self, fitness: Fitness) -> dict[str, Tensor]:
        """How far the centre moves; step size and covariance change too."""
        values = fitness.values.cpu()
        if not bool(values.any()):  # nothing distinguishes the members
            return {name: torch.zeros_like(p) for name, p in self.centre.items()}
        values = values.masked_fill(~fitness.used.cpu(), -torch.inf)
        weights = torch.empty_like(self.rank_weights)
        weights[values.argsort(descending=True, stable=True)] = self.rank_weights
        weights[~values.isfinite()] = 0.0
        z = self.normals(range(self.members.count))
        y, good = self.coloured(z), weights.clamp(min=0)
        mean = good @ y
        moved = self.current_sigma * self.step_size * mean
        self._adapt(z, y, weights, good @ z, mean)
        return {name: row[0] for name, row in self.by_parameter(moved[None]).items()}

    def _adapt(self, z: Tensor, y: Tensor, weights: Tensor, mean_z: Tensor, mean_y: Tensor) -> None:
        d, c_sigma, c_c = self.size, self.c_sigma, self.c_c
        self.path_sigma = (1 - c_sigma) * self.path_sigma + math.sqrt(c_sigma * (2 - c_sigma) * self.mu_eff) * mean_z
        square = self.path_sigma.square().sum().item()
        longer = (square / d - 1) / 2 if self.csa_squared else math.sqrt(square) / self.chi - 1
        self.step_size *= math.exp(c_sigma / self.damp * longer)
        expected = 1 - (1 - c_sigma) ** (2 * self.generation + 1)
        on = float(square / expected / d - 1 < 1 + 4 / (d + 1))  # a long path waits until s has grown
        self.path_c = (1 - c_c) * self.path_c + on * math.sqrt(c_c * (2 - c_c) * self.mu_eff) * mean_y
        scaled = torch.where(weights < 0, weights * d / z.square().sum(1), weights)
        c_1 = self.c_1 * (1 - (1 - on) * c_c * (2 - c_c))
        if self.separable:
            kept = 1 - c_1 - self.c_mu * scaled.sum()
            grown = c_1 * self.path_c.square() + self.c_mu * scaled @ y.square()
        else:
            kept = 1 - c_1 - self.c_mu * weights.sum()
            grown = self.c_1 * torch.outer(self.path_c, self.path_c) + self.c_mu * (y.T * scaled) @ y
        self.covariance = kept * self.covariance + grown
        if (self.generation + 1) % self.refresh_every == 0:
            self.factor = self.covariance.sqrt() if self.separable else torch.linalg.cholesky(self.covariance)
