"""Z-Image Turbo on the diffusers classes."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from t2ialign import BackendInfo, UsageError
from t2ialign.diffusers_scheduler import dynamic_shift, flow_path
from t2ialign.embeds import Row
from t2ialign.guided import GuidedBackend
from t2ialign.paths import FlowPath
from t2ialign_zimage.config import ZImageConfig


class ZImage(GuidedBackend):
    """ZImagePipeline: a single-stream rectified-flow transformer (arXiv 2511.22699), Qwen3 text, FLUX's autoencoder."""

    Config = ZImageConfig
    pipeline_names = ("ZImagePipeline",)
    ragged: ClassVar = {"prompt_embeds": "prompt_attention_mask"}

    def __init__(self, config: ZImageConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        side = self.latent_side(default=128)
        if side % 2:  # the network sees 2 x 2 patches
            raise UsageError(f"backend.image_size = {config.image_size}: must be a multiple of {2 * self.vae_factor}")
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=(self.component_config("transformer")["in_channels"], side, side),
            image_size=(side * self.vae_factor, side * self.vae_factor),
            base_model=config.checkpoint,
            pipeline="ZImagePipeline",
        )

    @cached_property
    def path(self) -> FlowPath:
        return flow_path(self.scheduler, own_grid=False, shift=dynamic_shift(self.scheduler, self.info.latent_shape))

    @property
    def prediction_type(self) -> str:
        return "flow_prediction"

    @property
    def cfg_scale(self) -> float:
        """pos + s (pos - neg) = neg + (1 + s) (pos - neg)."""
        return 1 + self.config.guidance_scale

    def encoding(self) -> dict[str, Any]:
        return {"max_sequence_length": self.config.max_sequence_length}

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        embeds, _ = pipeline.encode_prompt(
            list(prompts),  # the pipeline writes its chat template into the list
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.max_sequence_length,
        )
        return [{"prompt_embeds": embed} for embed in embeds]

    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        lengths = tensors["prompt_attention_mask"].sum(1).tolist()
        embeds = tensors["prompt_embeds"].to(self.network_dtype)
        outputs = self.trainable(
            list(x.to(self.network_dtype).unsqueeze(2).unbind()),  # each with one frame
            1 - t,
            [row[:length] for row, length in zip(embeds, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack([output.float() for output in outputs]).squeeze(2)

    def snippet_arguments(self) -> dict[str, Any]:
        return super().snippet_arguments() | {"max_sequence_length": self.config.max_sequence_length}
