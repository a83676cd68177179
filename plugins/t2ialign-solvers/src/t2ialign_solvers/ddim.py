"""DDIM with its stochastic family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from t2ialign import Prediction, StepSampler
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_solvers import schedules
from t2ialign_solvers.config import DdimConfig


class Ddim(StepSampler):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std n (DDIM, arXiv 2010.02502, eq. 12), on any path.

    std = eta times the standard deviation of the exact posterior of x_s given x_t and x0:
    std = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2).
    """

    Config = DdimConfig

    def times(self, path: DiffusionPath) -> Tensor:
        if self.config.schedule == "native":
            return path.times(self.config.steps)
        return path.time(schedules.knots(self.config, path))

    def scheduler(self) -> tuple[str, dict[str, Any]] | None:
        native = self.config.schedule == "native" and self.config.eta == 0
        return ("DDIMScheduler", {}) if native else None

    def transition(
        self, path: DiffusionPath, x: Tensor, prediction: Prediction, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = path.coefficients(s)
        if self.config.eta == 0:
            return alpha * prediction.x0 + sigma * prediction.eps, torch.zeros(())
        alpha_t, sigma_t = path.coefficients(t)
        ratio = alpha_t * sigma / (alpha * sigma_t)
        std = self.config.eta * sigma * torch.sqrt((1 - ratio**2).clamp(min=0))
        return alpha * prediction.x0 + torch.sqrt(sigma**2 - std**2) * prediction.eps, std
