"""Diffusion paths: x_t = alpha(t) x0 + sigma(t) eps. The solvers' only view of a model's noise schedule.

ODE solvers work in a path's own coordinates, state y = x / scale(t) over the variable v = sigma / scale, in which the
probability-flow ODE is dy/dv = (y - x0) / v for every path: noise-to-signal ratio and eps for VP models (the EDM form),
t and the velocity eps - x0 for rectified flow. Euler's step in them is DDIM's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Prediction(NamedTuple):
    """What a denoiser says at (x_t, t): x_t = alpha(t) x0 + sigma(t) eps. Both float32 (B, *latent_shape)."""

    x0: Tensor
    eps: Tensor


class DiffusionPath(ABC):
    """One family of alpha(t), sigma(t); t falls from ``t_start`` (noise) to ``t_end`` (data).

    Functions of t return t's dtype, float32 in sampling.

    Attributes:
        t_start, t_end: the ends of the path.
        t_min: the least noisy time that the model was trained on; EDM-style schedules end there.
        grid: the checkpoint's own time grid, steps -> (steps + 1,), or None for the path's.
        scheduler_config: configuration of the checkpoint's diffusers scheduler, or None.
    """

    t_start: float
    t_end: float = 0.0
    t_min: float = 1e-3
    grid: Callable[[int], Tensor] | None = None
    scheduler_config: dict[str, Any] | None = None

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient at t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient at t."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t) together."""
        return self.alpha(t), self.sigma(t)

    @abstractmethod
    def time(self, v: Tensor) -> Tensor:
        """The time at which ``variable`` is v."""

    def scale(self, t: Tensor) -> Tensor:
        """x = scale y."""
        return self.alpha(t)

    def variable(self, t: Tensor) -> Tensor:
        """The solvers' integration variable v, zero for clean data: the noise-to-signal ratio unless scale differs."""
        return self.sigma(t) / self.scale(t)

    def direction(self, prediction: Prediction) -> Tensor:
        """dy/dv."""
        return prediction.eps

    def free_direction(self, y: Tensor, v: Tensor) -> Tensor:
        """dy/dv at the start, guessed without the network: there y is almost all noise (analytic first step)."""
        return y / torch.sqrt(1 + v**2)

    def times(self, steps: int) -> Tensor:
        """The native time grid, descending, (steps + 1,)."""
        return self.grid(steps) if self.grid else torch.linspace(self.t_start, self.t_end, steps + 1)

    def from_timestep(self, timestep: Tensor) -> Tensor:
        """Path time of a diffusers timestep."""
        return timestep.float()

    def prior(self, noise: Tensor, t: Tensor | float | None = None) -> Tensor:
        """The state at the first time, made of unit noise alone."""
        start = torch.as_tensor(self.t_start if t is None else t, dtype=noise.dtype, device=noise.device)
        return self.sigma(start) * noise


class LinearPath(DiffusionPath):
    """Paths whose noise-to-signal ratio starts at infinity: y = (1 - v) x0 + v eps, v from 1 to 0."""

    def scale(self, t: Tensor) -> Tensor:
        return self.alpha(t) + self.sigma(t)

    def direction(self, prediction: Prediction) -> Tensor:
        return prediction.eps - prediction.x0

    def free_direction(self, y: Tensor, v: Tensor) -> Tensor:
        return y


class TrigFlowPath(LinearPath):
    """x_t = cos(t) x0 + sin(t) eps with x0 in units of sigma_data (sCM, arXiv 2410.11081; Sana Sprint)."""

    def __init__(self, t_start: float = math.pi / 2) -> None:
        self.t_start = t_start

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t)

    def time(self, v: Tensor) -> Tensor:
        return torch.atan2(v, 1 - v)


class FlowPath(LinearPath):
    """Rectified flow: x_t = (1 - t) x0 + t eps (SD3, FLUX, Sana, Z-Image).

    Args:
        shift: times are q -> shift q / (1 + (shift - 1) q) of an even grid (SD3, arXiv 2403.03206, eq. 23).
        t_min: the least noisy time of the ``flowmatch`` schedule, before its shift.
        train_steps: diffusers timestep of t = 1.
    """

    t_start = 1.0

    def __init__(self, shift: float = 1.0, t_min: float = 1e-3, train_steps: int = 1000) -> None:
        self.shift = shift
        self.t_min = t_min
        self.train_steps = train_steps

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, v: Tensor) -> Tensor:
        return v

    def shifted(self, q: Tensor) -> Tensor:
        return self.shift * q / (1 + (self.shift - 1) * q)

    def times(self, steps: int) -> Tensor:
        return self.grid(steps) if self.grid else self.shifted(torch.linspace(1, 0, steps + 1))

    def from_timestep(self, timestep: Tensor) -> Tensor:
        return timestep.float() / self.train_steps

    def prior(self, noise: Tensor, t: Tensor | float | None = None) -> Tensor:
        """The noise itself, also where a grid begins a little below 1: as models were trained and diffusers samples."""
        return noise


class VPPath(DiffusionPath):
    """The discrete variance-preserving path of SD and PixArt, made continuous: t is the training timestep.

    log alpha is linear between timesteps and beyond them (DPM-Solver, arXiv 2206.00927, appendix D.4), so t may be
    fractional; t = -1 is clean data.

    Args:
        alphas_cumprod: (T,) products of 1 - beta.
        t_start: first time of one-step models; default T - 1.
        unit_prior: start from the noise itself and not from sigma(t) noise, as DDIM-like diffusers schedulers do.
    """

    t_end = -1.0
    t_min = 0.0

    def __init__(self, alphas_cumprod: Tensor, t_start: float | None = None, unit_prior: bool = False) -> None:
        # A terminal SNR of zero becomes a very small one: ratios stay finite, images do not change.
        log_alpha = alphas_cumprod.detach().double().cpu().clamp(min=1e-14).log() / 2
        self._exact = (log_alpha, log_alpha.diff())
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.t_start = len(alphas_cumprod) - 1.0 if t_start is None else t_start
        self.unit_prior = unit_prior

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha_at(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.coefficients(t)[1]

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha_at(t)
        return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))

    def time(self, v: Tensor) -> Tensor:
        table, slope = self._interpolation(v)
        log_alpha = -torch.log1p(v**2) / 2
        last = (torch.searchsorted(-table, -log_alpha) - 1).clamp(0, len(slope) - 1)
        t = last + (log_alpha - table.take(last)) / slope.take(last)
        return torch.where(v == 0, self.t_end, t.clamp(min=self.t_end))

    def prior(self, noise: Tensor, t: Tensor | float | None = None) -> Tensor:
        return noise if self.unit_prior else super().prior(noise, t)

    def _log_alpha_at(self, t: Tensor) -> Tensor:
        table, slope = self._interpolation(t)
        last = t.floor().long().clamp(0, len(slope) - 1)
        # take, not indexing: an index without axes would wait for the GPU.
        return (table.take(last) + (t - last) * slope.take(last)).clamp(max=0)

    def _interpolation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha at all timesteps and its differences, where ``like`` is and as precise."""
        key = (like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = (self._exact[0].to(*key), self._exact[1].to(*key))
        return self._tables[key]
