"""The stochastic samplers of Flow-GRPO (arXiv 2505.05470) and its relatives, for rectified flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from t2ialign import Prediction, StepSampler, UsageError
from t2ialign.tensors.paths import DiffusionPath, FlowPath
from t2ialign_solvers.config import FlowSdeConfig


class FlowSde(StepSampler):
    """Euler-Maruyama steps of the SDE that has the flow's marginals (eq. 9), with velocity v and step h = s - t < 0:

        b = a sqrt(t / (1 - t))
        mean = x + (v + b^2 / (2 t) (x + (1 - t) v)) h,    std = b sqrt(-h)

    At t = 1, where b is infinite, 1 - t is taken at the end of the step. Other forms:

        cps:    mean = (1 - s) x0 + sqrt(s^2 - std^2) eps,          std = s sin(a pi / 2)
        dance:  mean = x + (v + a^2 / (2 t) eps) h,                 std = a sqrt(-h)
    """

    Config = FlowSdeConfig

    def times(self, path: DiffusionPath) -> Tensor:
        """The checkpoint's own grid.

        Raises:
            UsageError: the model is no rectified flow.
        """
        if not isinstance(path, FlowPath):
            raise UsageError("sampler.kind = 'flow-sde' needs a rectified flow; 'ddim' with eta > 0 serves any model")
        return path.times(self.config.steps)

    def transition(
        self, path: DiffusionPath, x: Tensor, prediction: Prediction, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.config.form == "cps":
            std = s * math.sin(self.config.noise * math.pi / 2)
            return (1 - s) * prediction.x0 + torch.sqrt(s**2 - std**2) * prediction.eps, std
        velocity, step = prediction.eps - prediction.x0, s - t
        if self.config.form == "dance":
            drift = velocity + self.config.noise**2 / (2 * t) * prediction.eps
            return x + drift * step, self.config.noise * torch.sqrt(-step)
        variance = self.config.noise**2 * t / (1 - torch.where(t == 1, s, t))
        drift = velocity + variance / (2 * t) * (x + (1 - t) * velocity)
        return x + drift * step, torch.sqrt(-variance * step)
