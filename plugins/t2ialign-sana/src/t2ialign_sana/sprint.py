"""Sana Sprint on the diffusers classes."""

from __future__ import annotations

from typing import Any

from t2ialign import Denoiser
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_sana.config import SanaSprintConfig
from t2ialign_sana.denoiser import SprintDenoiser, SprintPath
from t2ialign_sana.text import SanaText


class SanaSprint(SanaText):
    """SanaSprintPipeline: a TrigFlow consistency model (arXiv 2503.09641) with an AutoencoderDC."""

    Config = SanaSprintConfig
    pipeline_names = ("SanaSprintPipeline",)

    def denoiser(self, conditioning: Conditioning) -> Denoiser:
        return SprintDenoiser(self.trainable, conditioning.to(self.device), self.config.guidance_scale, SprintPath())

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        # The pipeline's default intermediate time is that of two steps, and an error for any other number.
        return super().snippet_arguments(steps) | ({} if steps == 2 else {"intermediate_timesteps": None})
