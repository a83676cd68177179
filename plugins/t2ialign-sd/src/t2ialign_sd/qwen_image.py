"""Qwen-Image."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from t2ialign import BackendInfo
from t2ialign.storage.embeds import Row
from t2ialign.tensors.batching import split
from t2ialign.tensors.paths import FlowPath
from t2ialign_diffusers.guided import GuidedBackend, GuidedDenoiser
from t2ialign_diffusers.scheduler import dynamic_shift, flow_path
from t2ialign_sd.config import QwenImageConfig


class NormKept(GuidedDenoiser):
    """Guidance that leaves every patch's output as long as it is with the prompt alone, as in QwenImagePipeline."""

    def guided(self, without: Tensor, with_prompt: Tensor) -> Tensor:
        both = pixel_unshuffle(super().guided(without, with_prompt), 2)
        length = pixel_unshuffle(with_prompt, 2).norm(dim=1, keepdim=True)
        return pixel_shuffle(both * (length / both.norm(dim=1, keepdim=True)), 2)


class QwenImage(GuidedBackend):
    """QwenImagePipeline (arXiv 2508.02324): a rectified-flow transformer, Qwen2.5-VL text, an autoencoder of video."""

    Config = QwenImageConfig
    pipeline_names = ("QwenImagePipeline",)
    ragged: ClassVar = {"prompt_embeds": "prompt_attention_mask"}
    denoiser_class = NormKept

    def __init__(self, config: QwenImageConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        network = self.component_config("transformer")
        latent_shape, image_size = self.shapes(network, network["in_channels"] // 4, cells=128)
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=latent_shape,
            image_size=image_size,
            base_model=config.checkpoint,
            pipeline="QwenImagePipeline",
        )

    @cached_property
    def path(self) -> FlowPath:
        return flow_path(self.scheduler, own_grid=False, shift=dynamic_shift(self.scheduler, self.info.latent_shape))

    @property
    def prediction_type(self) -> str:
        return "flow_prediction"

    def encoding(self) -> dict[str, Any]:
        return {"max_sequence_length": self.config.max_sequence_length}

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        width = self.component_config("transformer")["joint_attention_dim"]
        return {"prompt_embeds": (self.config.max_sequence_length, width)}

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        embeds, mask = pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.config.max_sequence_length
        )
        if mask is None:  # all are equally long
            return [{"prompt_embeds": embed} for embed in embeds]
        return [{"prompt_embeds": embed[kept.bool()]} for embed, kept in zip(embeds, mask, strict=True)]

    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        dtype = self.network_dtype
        patches = pixel_unshuffle(x, 2)
        height, width = patches.shape[-2:]
        output = self.trainable(
            hidden_states=patches.flatten(2).transpose(1, 2).to(dtype),
            timestep=t.to(dtype),
            encoder_hidden_states=tensors["prompt_embeds"].to(dtype),
            encoder_hidden_states_mask=tensors["prompt_attention_mask"],
            img_shapes=[[(1, height, width)]] * len(x),
            return_dict=False,
        )[0].float()
        return pixel_shuffle(output.transpose(1, 2).unflatten(2, (height, width)), 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Each is a video of one frame, in the autoencoder's units per channel."""
        vae = self.pipeline.vae
        mean, std = (
            torch.tensor(numbers, device=latents.device).view(-1, 1, 1)
            for numbers in (vae.config.latents_mean, vae.config.latents_std)
        )
        frames = (latents * std + mean).to(vae.dtype).unsqueeze(2)
        each = self.config.vae_micro_batch or len(frames)
        pixels = torch.cat([self._pixels(frames[rows])[:, :, 0] for rows in split(len(frames), each)])
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _pixels(self, frames: Tensor) -> Tensor:
        """One frame needs no memory of earlier ones, which would be another one when blocks are computed again."""
        vae = self.pipeline.vae
        if vae.use_tiling or vae.use_slicing:
            return vae.decode(frames, return_dict=False)[0]
        return vae.decoder(vae.post_quant_conv(frames))

    def snippet_noise(self, source: str) -> str:
        """In the pipeline's own form: one token for 2 x 2 cells."""
        return f"{super().snippet_noise(source)}latents = pipe._pack_latents(latents, *latents.shape)\n"

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        height, width = self.info.image_size
        arguments: dict[str, Any] = {"num_inference_steps": steps, "height": height, "width": width}
        if self.cfg_scale > 1:  # without a negative prompt the pipeline leaves guidance out
            negative = self.config.negative_prompt or ""
            arguments |= {"true_cfg_scale": self.config.guidance_scale, "negative_prompt": negative}
        return arguments | {"max_sequence_length": self.config.max_sequence_length}
