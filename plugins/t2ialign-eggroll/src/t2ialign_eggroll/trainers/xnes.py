"""xNES (Glasmachers, Schaul, Yi, Wierstra and Schmidhuber, "Exponential Natural Evolution Strategies", GECCO 2010)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign_eggroll.shaping import Fitness
from t2ialign_eggroll.trainers.covariance import CovarianceTrainer
from t2ialign_eggroll.trainers.scoring import FitnessFunction


class XNESTrainer(CovarianceTrainer):
    """Members m + sigma A z. With utilities u that sum to 0, m grows by sigma A sum_i u_i z_i, and

        A <- A exp(eta / 2 sum_i u_i (z_i z_i^T - I)),

    the natural gradient in coordinates in which A keeps its full rank. For small modules, as ``CMAESTrainer`` without
    ``separable``: a generation costs O(N D^2 + D^3). ``SNESTrainer`` is the diagonal form.

    Args:
        sigma_learning_rate: eta; default 0.6 (3 + ln D) / (D sqrt D).
        options: ``population_size``, see ``CovarianceTrainer``, and those of ``ESTrainer``.
    """

    NAME, ADVICE = "xNES", "SNESTrainer, or EggrollTrainer"
    SHAPING = "nes"

    def __init__(
        self, model: nn.Module, fitness_fn: FitnessFunction, *, sigma_learning_rate: float | None = None, **options: Any
    ) -> None:
        if "separable" in options:
            raise ValueError("xNES keeps the whole covariance: SNESTrainer is its separable form")
        if sigma_learning_rate is not None and sigma_learning_rate < 0:
            raise ValueError(f"sigma_learning_rate must not be negative, not {sigma_learning_rate}")
        super().__init__(model, fitness_fn, **options)
        natural = 0.6 * (3 + math.log(self.size)) / (self.size * math.sqrt(self.size))
        self.sigma_learning_rate = natural if sigma_learning_rate is None else sigma_learning_rate

    def compute_update(self, fitness: Fitness) -> dict[str, Tensor]:
        """How far the centre moves; the factor changes too."""
        utilities = fitness.values.double().cpu()
        z = self.normals(range(self.members.count))
        moved = self.current_sigma * self.coloured(utilities @ z)
        change = (z.T * utilities) @ z - utilities.sum() * torch.eye(self.size, dtype=z.dtype)
        self.factor = self.factor @ torch.linalg.matrix_exp(self.sigma_learning_rate / 2 * change)
        return {name: row[0] for name, row in self.by_parameter(moved[None]).items()}
