"""Hyper-SDXL: SDXL with a UNet that was distilled to one step at t = 800."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from t2ialign import UsageError, checkpoints
from t2ialign.tensors.paths import VPPath
from t2ialign_diffusers.backend import quiet_libraries
from t2ialign_diffusers.folder import is_complete
from t2ialign_diffusers.scheduler import vp_path
from t2ialign_sd.config import HyperSdConfig
from t2ialign_sd.unet import StableDiffusionXL


class HyperSd(StableDiffusionXL):
    """Hyper-SD (arXiv 2404.13686). Its LCM boundary terms differ from the plain x0 by less than 1e-7."""

    Config = HyperSdConfig
    weightless = ("unet",)

    @cached_property
    def path(self) -> VPPath:
        return vp_path(self.scheduler, t_start=800.0)

    @cached_property
    def scheduler(self) -> Any:
        with quiet_libraries():
            from diffusers import LCMScheduler

            return LCMScheduler.from_pretrained(self.folder / "scheduler")

    def own_components(self) -> dict[str, Any]:
        """The UNet of ``network_checkpoint`` in the base checkpoint's architecture.

        Raises:
            UsageError: the file is missing, damaged, or of another architecture.
        """
        from diffusers import UNet2DConditionModel

        name = self.config.network_file
        file = checkpoints.resolve(self.config.network_checkpoint, patterns=[name]) / name
        if not file.is_file() or not is_complete(file):
            raise UsageError(f"backend.network_checkpoint: {file} is missing or truncated")
        unet = UNet2DConditionModel.from_config(self.component_config("unet")).to(self.network_dtype)
        try:
            unet.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise UsageError(
                f"backend.network_file: {file} does not fit the UNet of the checkpoint: {error}"
            ) from error
        return {"unet": unet, "scheduler": self.scheduler}

    def snippet_pipeline(self) -> str:
        base, student, name = self.config.checkpoint, self.config.network_checkpoint, self.config.network_file
        hub = not Path(student).is_dir()
        file = f"hf_hub_download({student!r}, {name!r})" if hub else repr(f"{student}/{name}")
        return f"""\
import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
{"from huggingface_hub import hf_hub_download" + chr(10) if hub else ""}from safetensors.torch import load_file

unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config("{base}", subfolder="unet"))
unet.load_state_dict(load_file({file}))
pipe = StableDiffusionXLPipeline.from_pretrained("{base}"{self.snippet_edition}, unet=unet)
pipe.to(dtype=torch.{self.config.dtype})
pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)"""

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        return super().snippet_arguments(steps) | {"timesteps": [800]}
