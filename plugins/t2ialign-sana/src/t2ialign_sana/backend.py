"""Sana Sprint on the diffusers classes."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch

from t2ialign import BackendInfo, Denoiser
from t2ialign.conditioning import Conditioning
from t2ialign.diffusers_backend import DiffusersBackend
from t2ialign.embeds import Row
from t2ialign_sana.config import SanaSprintConfig
from t2ialign_sana.denoiser import SprintDenoiser, SprintPath


class SanaSprint(DiffusersBackend):
    """Sana Sprint: SanaTransformer2DModel, AutoencoderDC and a Gemma-2 text encoder."""

    Config = SanaSprintConfig
    pipeline_names = ("SanaSprintPipeline",)
    ragged: ClassVar = {"prompt_embeds": "prompt_attention_mask"}

    def __init__(self, config: SanaSprintConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        network = self.component_config("transformer")
        side = self.latent_side(default=network["sample_size"])
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=(network["in_channels"], side, side),
            image_size=(side * self.vae_factor, side * self.vae_factor),
            adapter_prefix="transformer",
            base_model=config.checkpoint,
            pipeline="SanaSprintPipeline",
        )

    def denoiser(self, conditioning: Conditioning) -> Denoiser:
        return SprintDenoiser(self.trainable, conditioning, self.config.guidance_scale, SprintPath())

    @property
    def max_sequence_length(self) -> int:
        """Prompt tokens kept."""
        allowed = self.component_config("tokenizer").get("model_max_length", self.config.max_sequence_length)
        return min(self.config.max_sequence_length, int(allowed))

    def encoding(self) -> dict[str, Any]:
        return {
            "max_sequence_length": self.max_sequence_length,
            "complex_human_instruction": self.config.complex_human_instruction,
        }

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        call = inspect.signature(type(pipeline).__call__).parameters
        instruction = call["complex_human_instruction"].default if self.config.complex_human_instruction else None
        embeds, masks = pipeline.encode_prompt(
            prompts,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=instruction,
        )
        return [{"prompt_embeds": embed[mask.bool()]} for embed, mask in zip(embeds, masks, strict=True)]

    def snippet(self) -> str:
        size = self.info.image_size
        plain = "" if self.config.complex_human_instruction else "\n    complex_human_instruction=None,"
        return f"""\
{self.snippet_loading()}
image = pipe(
    "a prompt",
    num_inference_steps=1,
    intermediate_timesteps=None,  # needed for any number of steps but 2
    guidance_scale={self.config.guidance_scale},
    height={size[0]},
    width={size[1]},
    use_resolution_binning=False,
    max_sequence_length={self.max_sequence_length},{plain}
).images[0]
"""
