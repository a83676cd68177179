"""Any scheduler of diffusers as a sampler."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from t2ialign import Denoiser, Sampler, UsageError, seeding
from t2ialign.tensors.paths import DiffusionPath, FlowPath
from t2ialign_solvers.config import DiffusersConfig


class DiffusersScheduler(Sampler):
    """The scheduler's own loop, with the checkpoint's scheduler configuration and per-image generators."""

    Config = DiffusersConfig

    def sample(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        scheduler = self.build(denoiser.path.scheduler_config)
        self.set_times(scheduler, denoiser.path, noise)
        from t2ialign_diffusers.parameterisation import to_output

        kind = scheduler.config.get("prediction_type", "flow_prediction")
        arguments: dict[str, Any] = {}
        if seeds is not None and "generator" in scheduler.step.__code__.co_varnames:
            arguments["generator"] = [seeding.generator(seeding.derive(seed, "sampler")) for seed in seeds]
        x = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
            t = denoiser.path.from_timestep(timestep).expand(len(x))
            output = to_output(kind, denoiser.path, t, denoiser(scaled, t))
            x = scheduler.step(output, timestep, x, return_dict=False, **arguments)[0]
        return x

    def set_times(self, scheduler: Any, path: DiffusionPath, noise: Tensor) -> None:
        """The scheduler's own grid, or the even and shifted one of pipelines that pass one, such as FLUX's."""
        steps, known = self.config.steps, inspect.signature(scheduler.set_timesteps).parameters
        if not (isinstance(path, FlowPath) and path.grid is None and "sigmas" in known):
            scheduler.set_timesteps(steps, device=noise.device)
            return
        dynamic = scheduler.config.get("use_dynamic_shifting") and "mu" in known
        shift = {"mu": math.log(path.shift)} if dynamic else {}
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=noise.device, **shift)

    def scheduler(self) -> tuple[str, dict[str, Any]]:
        return self.config.scheduler, dict(self.config.options)

    def build(self, checkpoint: dict[str, Any] | None) -> Any:
        """The scheduler, set up as the checkpoint says and then as the spec says.

        Raises:
            UsageError: no such class, an option that it refuses, a backend without a scheduler configuration, or no
                diffusers.
        """
        try:
            import diffusers

            import t2ialign_diffusers  # noqa: F401
        except ModuleNotFoundError as error:
            raise UsageError("sampler.kind = 'diffusers' needs the package t2ialign-diffusers") from error

        name = self.config.scheduler
        if checkpoint is None:
            raise UsageError(
                "sampler.kind = 'diffusers' needs a backend whose checkpoint has a scheduler configuration"
            )
        try:
            return getattr(diffusers, name).from_config({**checkpoint, **self.config.options})
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UsageError(f"sampler.scheduler = '{name}': {error}") from error
