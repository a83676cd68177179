"""Stable Diffusion 1.x, 2.x and XL, and their Turbo students."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from t2ialign import BackendInfo
from t2ialign.storage.embeds import Row
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import VPPath
from t2ialign_diffusers.folder import read_json
from t2ialign_diffusers.guided import GuidedBackend
from t2ialign_diffusers.scheduler import vp_path
from t2ialign_sd.config import UnetConfig

#: CLIP's text encoders see so many tokens of every prompt.
CLIP_TOKENS = 77


class StableDiffusion(GuidedBackend):
    """StableDiffusionPipeline: a UNet on a VP path, CLIP text, AutoencoderKL."""

    Config = UnetConfig
    pipeline_names = ("StableDiffusionPipeline",)
    trained_component = "unet"
    channels_last = True
    # A triggered checker would return black images and so corrupt rewards.
    load_options: ClassVar = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }

    def __init__(self, config: UnetConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        unet = self.component_config("unet")
        latent_shape, image_size = self.shapes(unet, unet["in_channels"], cells=unet["sample_size"])
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=latent_shape,
            image_size=image_size,
            adapter_prefix="unet",
            base_model=config.checkpoint,
            pipeline=self.pipeline_names[0],
        )

    @cached_property
    def path(self) -> VPPath:
        return vp_path(self.scheduler)

    def modelspec(self) -> dict[str, str]:
        """Which Stable Diffusion the UNet is, by the width of its text, and what it predicts."""
        kind = "v" if self.component_config("scheduler").get("prediction_type") == "v_prediction" else "epsilon"
        first, second = "stable-diffusion-v1", "stable-diffusion-v2-768-v" if kind == "v" else "stable-diffusion-v2-512"
        network = first if self.component_config("unet")["cross_attention_dim"] < 1024 else second
        return {"architecture": f"{network}/lora", "prediction_type": kind}

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (CLIP_TOKENS, self.component_config("unet")["cross_attention_dim"])}

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        embeds, _ = pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)
        return [{"prompt_embeds": embed} for embed in embeds]

    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return self.trainable(
            x.to(self.network_dtype),
            t,
            timestep_cond=self.guidance_input(len(x)),
            encoder_hidden_states=tensors["prompt_embeds"].to(self.network_dtype),
            added_cond_kwargs=self.added_conditions(tensors),
            return_dict=False,
        )[0].float()

    @property
    def cfg_scale(self) -> float:
        """1 where guidance is an input of the network, as in latent consistency models."""
        return 1.0 if self.component_config("unet").get("time_cond_proj_dim") else self.config.guidance_scale

    def guidance_input(self, count: int) -> Tensor | None:
        """The guidance scale as such a network takes it, (count, width)."""
        width = self.component_config("unet").get("time_cond_proj_dim")
        if width is None:
            return None
        scale = torch.full((count,), self.config.guidance_scale - 1, device="cpu")
        return self.pipeline.get_guidance_scale_embedding(scale, width).to(self.device, self.network_dtype)

    def added_conditions(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """What the UNet gets besides the text sequence."""
        return None


class StableDiffusionXL(StableDiffusion):
    """StableDiffusionXLPipeline: two text encoders, a pooled embedding and the image size as conditions."""

    pipeline_names = ("StableDiffusionXLPipeline",)
    text_components = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    row_names = ("prompt_embeds", "pooled_prompt_embeds")
    load_options: ClassVar = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        unet = self.component_config("unet")
        pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        return {**super().row_shapes(), "pooled_prompt_embeds": (pooled,)}

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return [{"prompt_embeds": e, "pooled_prompt_embeds": p} for e, p in zip(embeds, pooled, strict=True)]

    def modelspec(self) -> dict[str, str]:
        return super().modelspec() | {"architecture": "stable-diffusion-xl-v1-base/lora"}

    def as_negative(self, encoded: Conditioning) -> Conditioning:
        """Zeros in place of an absent negative prompt, where the checkpoint was trained so."""
        index = read_json(self.folder / "model_index.json")
        if self.config.negative_prompt is not None or not index.get("force_zeros_for_empty_prompt", True):
            return encoded
        return Conditioning(encoded.prompts, {name: torch.zeros_like(t) for name, t in encoded.tensors.items()})

    def added_conditions(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pooled = tensors["pooled_prompt_embeds"].to(self.network_dtype)
        original_crop_target = (*self.info.image_size, 0, 0, *self.info.image_size)
        sizes = torch.tensor(original_crop_target, dtype=self.network_dtype, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}
