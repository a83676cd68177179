"""One network evaluation from pure noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from t2ialign import Denoiser, Sampler
from t2ialign_solvers.config import OneStepConfig


class OneStep(Sampler):
    """x0 as the denoiser predicts it at the path's start."""

    Config = OneStepConfig

    def sample(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return denoiser(denoiser.path.prior(noise), denoiser.path.t_start).x0

    def scheduler(self) -> tuple[str, dict[str, Any]]:
        return "", {}
