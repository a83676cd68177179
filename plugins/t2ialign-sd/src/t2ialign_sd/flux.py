"""FLUX.1 dev and schnell."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from t2ialign import BackendInfo
from t2ialign.storage.embeds import Row
from t2ialign.tensors.paths import FlowPath
from t2ialign_diffusers.guided import GuidedBackend
from t2ialign_diffusers.scheduler import dynamic_shift, flow_path
from t2ialign_sd.config import FluxConfig


class Flux(GuidedBackend):
    """FluxPipeline: a rectified-flow transformer over 2 x 2 patches of the latents, CLIP and T5 text."""

    Config = FluxConfig
    pipeline_names = ("FluxPipeline",)
    text_components = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    row_names = ("prompt_embeds", "pooled_prompt_embeds")

    def __init__(self, config: FluxConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        network = self.component_config("transformer")
        latent_shape, image_size = self.shapes(network, network["in_channels"] // 4, cells=128)
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=latent_shape,
            image_size=image_size,
            base_model=config.checkpoint,
            pipeline="FluxPipeline",
        )

    @cached_property
    def path(self) -> FlowPath:
        return flow_path(self.scheduler, own_grid=False, shift=dynamic_shift(self.scheduler, self.info.latent_shape))

    @property
    def prediction_type(self) -> str:
        return "flow_prediction"

    def modelspec(self) -> dict[str, str]:
        edition = "dev" if self.component_config("transformer").get("guidance_embeds") else "schnell"
        return {"architecture": f"flux-1-{edition}/lora"}

    def encoding(self) -> dict[str, Any]:
        return {"max_sequence_length": self.max_sequence_length}

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        network = self.component_config("transformer")
        return {
            "prompt_embeds": (self.max_sequence_length, network["joint_attention_dim"]),
            "pooled_prompt_embeds": (network["pooled_projection_dim"],),
        }

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        embeds, pooled, _ = pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return [{"prompt_embeds": e, "pooled_prompt_embeds": p} for e, p in zip(embeds, pooled, strict=True)]

    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        transformer, dtype = self.trainable, self.network_dtype
        patches = pixel_unshuffle(x, 2)
        height, width = patches.shape[-2:]
        embeds = tensors["prompt_embeds"].to(dtype)
        guidance = None
        if self.distilled:
            guidance = torch.full((len(x),), self.config.distilled_guidance, device=x.device)
        output = transformer(
            hidden_states=patches.flatten(2).transpose(1, 2).to(dtype),
            timestep=t.to(dtype),
            guidance=guidance,
            pooled_projections=tensors["pooled_prompt_embeds"].to(dtype),
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=dtype),
            img_ids=_positions(height, width).to(x.device, dtype),
            return_dict=False,
        )[0].float()
        return pixel_shuffle(output.transpose(1, 2).unflatten(2, (height, width)), 2)

    @property
    def distilled(self) -> bool:
        """Whether guidance is an input of the network, as in FLUX.1-dev; FLUX.1-schnell has none."""
        return bool(self.component_config("transformer").get("guidance_embeds"))

    @property
    def max_sequence_length(self) -> int:
        """T5 tokens kept."""
        return self.config.max_sequence_length or (512 if self.distilled else 256)

    def snippet_noise(self, source: str) -> str:
        """In the pipeline's own form: one token for 2 x 2 cells."""
        return f"{super().snippet_noise(source)}latents = pipe._pack_latents(latents, *latents.shape)\n"

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        height, width = self.info.image_size
        arguments: dict[str, Any] = {"num_inference_steps": steps, "height": height, "width": width}
        if self.distilled:
            arguments["guidance_scale"] = self.config.distilled_guidance
        if self.config.guidance_scale > 1:  # without a negative prompt the pipeline leaves it out
            negative = self.config.negative_prompt or ""
            arguments |= {"true_cfg_scale": self.config.guidance_scale, "negative_prompt": negative}
        return arguments | {"max_sequence_length": self.max_sequence_length}


def _positions(height: int, width: int) -> Tensor:
    """(height x width, 3): 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
