"""Where a solver stops on its way from noise to data: descending values of a path's variable v.

For VP models v is sigma in the variance-exploding form, so that EDM's and EPD's schedules apply as published.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ialign import UsageError
from t2ialign.tensors.paths import DiffusionPath, FlowPath
from t2ialign_solvers.config import ScheduleConfig


def knots(config: ScheduleConfig, path: DiffusionPath) -> Tensor:
    """The schedule of a spec: (steps + 1,) float32; the last one is 0 if the schedule goes all the way.

    Raises:
        UsageError: ``flowmatch`` for a model that is no rectified flow.
    """
    if config.schedule == "native":
        return path.variable(path.times(config.steps))
    points = config.steps if config.to_zero else config.steps + 1
    start, end = path.variable(torch.tensor([path.t_start, path.t_min], dtype=torch.float64))
    rho = config.rho
    if config.schedule == "polynomial":
        values = polynomial(points, start, end, rho or 7.0)
    elif config.schedule == "logsnr":
        values = logsnr(points, start, end)
    elif config.schedule == "time_uniform":
        values = time_uniform(points, start, end, rho or 1.0)
    elif config.schedule == "discrete":
        values = discrete(points, path, rho or 1.0)
    else:
        if not isinstance(path, FlowPath):
            raise UsageError("sampler.schedule = 'flowmatch' needs a rectified-flow backend")
        values = flowmatch(points, path)
    zero = [torch.zeros(1, dtype=values.dtype)] if config.to_zero else []
    return torch.cat([values, *zero]).float()


def polynomial(points: int, start: Tensor, end: Tensor, rho: float) -> Tensor:
    """EDM's grid (arXiv 2206.00364, eq. 5)."""
    return (start ** (1 / rho) + _unit(points) * (end ** (1 / rho) - start ** (1 / rho))) ** rho


def logsnr(points: int, start: Tensor, end: Tensor) -> Tensor:
    """Even in log v (DPM-Solver, arXiv 2206.00927)."""
    return torch.exp(start.log() + _unit(points) * (end.log() - start.log()))


def time_uniform(points: int, start: Tensor, end: Tensor, rho: float) -> Tensor:
    """Even in the time of the continuous VP process whose v runs from ``start`` to ``end`` (EDM, table 1).

    In float32, as in the published code: its rounding shows in the fifth digit at the end.
    """
    least = 1e-3
    log_start, log_end = (start.float() ** 2 + 1).log(), (end.float() ** 2 + 1).log()
    beta_slope = 2 * (log_end / least - log_start) / (least - 1)
    beta_start = log_start - beta_slope / 2
    tau = (1 + _unit(points).float() * (least ** (1 / rho) - 1)) ** rho
    return torch.sqrt(torch.exp(beta_slope * tau**2 / 2 + beta_start * tau) - 1)


def discrete(points: int, path: DiffusionPath, rho: float) -> Tensor:
    """Even in the model's own time for rho = 1, denser near the data for rho > 1."""
    whole = path.t_start - path.t_end
    least = (path.t_min - path.t_end) / whole
    tau = (1 + _unit(points) * (least ** (1 / rho) - 1)) ** rho
    return path.variable(path.t_end + whole * tau)


def flowmatch(points: int, path: FlowPath) -> Tensor:
    """The grid of diffusers' ``FlowMatchEulerDiscreteScheduler.set_timesteps(points)`` without its final 0."""
    return path.shifted(1 + _unit(points) * (path.t_min - 1))


def _unit(points: int) -> Tensor:
    return torch.linspace(0, 1, points, dtype=torch.float64)
