"""The path and time grid behind a diffusers scheduler."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from t2ialign.tensors.paths import DiffusionPath, FlowPath, VPPath


def vp_path(scheduler: Any, t_start: float | None = None) -> VPPath:
    """The variance-preserving path of a scheduler with ``alphas_cumprod``, on the scheduler's own grid."""
    ours = _copy(scheduler)
    ours.set_timesteps(1)
    start = ours.scale_model_input(torch.ones(1), ours.timesteps[0]) * float(ours.init_noise_sigma)
    path = VPPath(scheduler.alphas_cumprod, t_start, unit_prior=bool((start - 1).abs() < 1e-6))
    path.grid = cache(lambda steps: _grid(path, scheduler, steps))
    path.scheduler_config = dict(scheduler.config)
    return path


def flow_path(scheduler: Any, own_grid: bool, shift: float | None = None) -> FlowPath:
    """The rectified-flow path of a scheduler.

    Args:
        scheduler: ``FlowMatchEulerDiscreteScheduler``, or one with flow sigmas.
        own_grid: use the scheduler's grid; else the evenly spaced and shifted one of pipelines that pass sigmas.
        shift: default: the scheduler's static shift.
    """
    config = scheduler.config
    static = config.get("shift", config.get("flow_shift", 1.0))
    least = getattr(scheduler, "sigma_min", None)
    path = FlowPath(shift or static, 1e-3 if least is None else float(least), config.num_train_timesteps)
    if terminal := config.get("shift_terminal"):
        path.grid = cache(lambda steps: _stretched(path, steps, terminal))
    if own_grid:
        mu = {}
        if shift is not None and config.get("use_dynamic_shifting"):
            mu = {"mu": shift if config.get("time_shift_type") == "linear" else math.log(shift)}
        path.grid = cache(lambda steps: _grid(path, scheduler, steps, **mu))
    path.scheduler_config = dict(config)
    return path


def dynamic_shift(scheduler: Any, latent_shape: tuple[int, ...], patch: int = 2) -> float | None:
    """The shift of so many patches, e^mu with mu linear in them, as in FLUX.1-dev; None where it is fixed."""
    settings = scheduler.config
    if not settings.get("use_dynamic_shifting"):
        return None
    patches = latent_shape[-2] * latent_shape[-1] / patch**2
    fraction = (patches - settings.base_image_seq_len) / (settings.max_image_seq_len - settings.base_image_seq_len)
    mu = settings.base_shift + fraction * (settings.max_shift - settings.base_shift)
    return float(mu) if settings.get("time_shift_type") == "linear" else math.exp(mu)


def _grid(path: DiffusionPath, scheduler: Any, steps: int, **options: float) -> Tensor:
    """Times at which the scheduler would evaluate the network, and where it ends."""
    ours = _copy(scheduler)
    ours.set_timesteps(steps, **options)
    if hasattr(ours, "sigmas"):  # in the form x0 + sigma eps, or t itself for a flow: the path's variable
        return path.time(torch.unique_consecutive(ours.sigmas.double().cpu())).float()
    end = path.t_end if float(getattr(ours, "final_alpha_cumprod", 1.0)) == 1.0 else 0.0
    return torch.cat([torch.unique_consecutive(ours.timesteps.float().cpu()), torch.tensor([end])])


def _stretched(path: FlowPath, steps: int, terminal: float) -> Tensor:
    """The even and shifted grid, stretched so that its last time before 0 is ``terminal`` (Qwen-Image)."""
    t = path.shifted(torch.linspace(1, 0, steps + 1))
    if steps > 1:
        t[:-1] = 1 - (1 - t[:-1]) * (1 - terminal) / (1 - t[-2])
    return t


def _copy(scheduler: Any) -> Any:
    return type(scheduler).from_config(scheduler.config)
