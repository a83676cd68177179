"""Any scheduler of diffusers as a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from t2ialign import Denoiser, Sampler, UsageError, seeding
from t2ialign.errors import nearest
from t2ialign_solvers.config import DiffusersConfig


class DiffusersScheduler(Sampler):
    """The scheduler's own loop, with the checkpoint's scheduler configuration and per-image generators."""

    Config = DiffusersConfig

    def sample(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        scheduler = self.build(denoiser.path.scheduler_config)
        from t2ialign_diffusers.parameterisation import to_output

        kind = scheduler.config.get("prediction_type", "flow_prediction")
        arguments: dict[str, Any] = {}
        if seeds is not None and "generator" in scheduler.step.__code__.co_varnames:
            arguments["generator"] = [seeding.generator(seeding.derive(seed, "sampler")) for seed in seeds]
        scheduler.set_timesteps(self.config.steps, device=noise.device)
        x = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
            t = denoiser.path.from_timestep(timestep).expand(len(x))
            output = to_output(kind, denoiser.path, t, denoiser(scaled, t))
            x = scheduler.step(output, timestep, x, return_dict=False, **arguments)[0]
        return x

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
        known = [known for known in dir(diffusers) if known.endswith("Scheduler")]
        if name not in known:
            hint = f"; did you mean '{match}'?" if (match := nearest(name, known)) else ""
            raise UsageError(f"sampler.scheduler = '{name}': diffusers has no such class{hint}")
        if checkpoint is None:
            raise UsageError(
                "sampler.kind = 'diffusers' needs a backend whose checkpoint has a scheduler configuration"
            )
        try:
            return getattr(diffusers, name).from_config({**checkpoint, **self.config.options})
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UsageError(f"sampler.scheduler = '{name}': {error}") from error
