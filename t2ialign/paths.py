"""Diffusion paths: x_t = alpha(t) x0 + sigma(t) eps. The solvers' only view of a model's noise schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class DiffusionPath(ABC):
    """One family of alpha(t), sigma(t); t falls from ``t_start`` (noise) to ``t_end`` (data). All float32."""

    t_start: float
    t_end: float = 0.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient at t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient at t."""

    def variable(self, t: Tensor) -> Tensor:
        """The solver's integration variable: the noise-to-signal ratio sigma / alpha unless a path knows better."""
        return self.sigma(t) / self.alpha(t)

    def times(self, steps: int) -> Tensor:
        """The native time grid, descending, (steps + 1,)."""
        return torch.linspace(self.t_start, self.t_end, steps + 1)

    def prior(self, noise: Tensor, t: Tensor | float | None = None) -> Tensor:
        """The state at the first time, made of unit noise alone."""
        start = torch.as_tensor(self.t_start if t is None else t, dtype=torch.float32, device=noise.device)
        return self.sigma(start) * noise


class TrigFlowPath(DiffusionPath):
    """x_t = cos(t) x0 + sin(t) eps with x0 in units of sigma_data (sCM, arXiv 2410.11081; Sana Sprint)."""

    def __init__(self, t_start: float = math.pi / 2) -> None:
        self.t_start = t_start

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t)

    def variable(self, t: Tensor) -> Tensor:
        """t itself: sigma / alpha is infinite at the start."""
        return t


class FlowPath(DiffusionPath):
    """Rectified flow: x_t = (1 - t) x0 + t eps (SD3, FLUX, Sana, Z-Image)."""

    t_start = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def variable(self, t: Tensor) -> Tensor:
        return t
