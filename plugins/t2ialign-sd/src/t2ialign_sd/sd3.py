"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from t2ialign import BackendInfo
from t2ialign.storage.embeds import Row
from t2ialign.tensors.paths import FlowPath
from t2ialign_diffusers.guided import GuidedBackend
from t2ialign_diffusers.scheduler import dynamic_shift, flow_path
from t2ialign_sd.config import Sd3Config
from t2ialign_sd.unet import CLIP_TOKENS


class StableDiffusion3(GuidedBackend):
    """StableDiffusion3Pipeline: a rectified-flow transformer with two CLIP texts and one T5 text (arXiv 2403.03206)."""

    Config = Sd3Config
    pipeline_names = ("StableDiffusion3Pipeline",)
    text_components = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3")
    row_names = ("prompt_embeds", "pooled_prompt_embeds")

    def __init__(self, config: Sd3Config, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        network = self.component_config("transformer")
        latent_shape, image_size = self.shapes(network, network["in_channels"], cells=network["sample_size"])
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=latent_shape,
            image_size=image_size,
            base_model=config.checkpoint,
            pipeline="StableDiffusion3Pipeline",
        )

    @cached_property
    def path(self) -> FlowPath:
        patch = self.component_config("transformer")["patch_size"]
        shift = dynamic_shift(self.scheduler, self.info.latent_shape, patch)
        return flow_path(self.scheduler, own_grid=True, shift=shift)

    @property
    def prediction_type(self) -> str:
        return "flow_prediction"

    def modelspec(self) -> dict[str, str]:
        """3 medium has no normalised queries, 3.5 large more blocks than both mediums."""
        network = self.component_config("transformer")
        size = "m" if network.get("qk_norm") is None else "5-large" if network["num_layers"] > 24 else "5-medium"
        return {"architecture": f"stable-diffusion-3-{size}/lora"}

    def encoding(self) -> dict[str, Any]:
        return {"max_sequence_length": self.config.max_sequence_length}

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        network, length = self.component_config("transformer"), CLIP_TOKENS + self.config.max_sequence_length
        pooled = network["pooled_projection_dim"]
        return {"prompt_embeds": (length, network["joint_attention_dim"]), "pooled_prompt_embeds": (pooled,)}

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.max_sequence_length,
        )
        return [{"prompt_embeds": e, "pooled_prompt_embeds": p} for e, p in zip(embeds, pooled, strict=True)]

    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return self.trainable(
            hidden_states=x.to(self.network_dtype),
            timestep=t * self.path.train_steps,
            encoder_hidden_states=tensors["prompt_embeds"].to(self.network_dtype),
            pooled_projections=tensors["pooled_prompt_embeds"].to(self.network_dtype),
            return_dict=False,
        )[0].float()

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        return super().snippet_arguments(steps) | {"max_sequence_length": self.config.max_sequence_length}
