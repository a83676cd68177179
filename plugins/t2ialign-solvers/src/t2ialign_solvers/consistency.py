"""Multistep consistency sampling."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from t2ialign import Prediction, StepSampler
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_solvers.config import ConsistencyConfig


class Consistency(StepSampler):
    """Jump to x0, add fresh noise for the next time, repeat (Consistency Models, arXiv 2303.01469, algorithm 1).

    On a TrigFlow path this is the step of diffusers' ``SCMScheduler``: x_s = cos(s) x0 + sin(s) n.
    """

    Config = ConsistencyConfig

    def times(self, path: DiffusionPath) -> Tensor:
        return path.times(self.config.steps)

    def transition(
        self, path: DiffusionPath, x: Tensor, prediction: Prediction, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        return path.alpha(s) * prediction.x0, path.sigma(s)

    def scheduler(self) -> tuple[str, dict[str, Any]]:
        return "", {}
