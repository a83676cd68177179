"""What all Sana models share: Gemma text, and the facts of a checkpoint."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch

from t2ialign import BackendInfo
from t2ialign.storage.embeds import Row
from t2ialign_diffusers.backend import DiffusersBackend
from t2ialign_sana.config import SanaTextConfig


class SanaText(DiffusersBackend):
    """Prompts through a Gemma-2 decoder, behind the pipeline's complex human instruction or without it."""

    ragged: ClassVar = {"prompt_embeds": "prompt_attention_mask"}

    def __init__(self, config: SanaTextConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        network = self.component_config("transformer")
        latent_shape, image_size = self.shapes(network, network["in_channels"], cells=network["sample_size"])
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=latent_shape,
            image_size=image_size,
            adapter_prefix="transformer",
            base_model=config.checkpoint,
            pipeline=self.pipeline_names[0],
        )

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

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (self.max_sequence_length, self.component_config("transformer")["caption_channels"])}

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        call = inspect.signature(type(pipeline).__call__).parameters
        instruction = call["complex_human_instruction"].default if self.config.complex_human_instruction else None
        # SanaPipeline would encode a negative prompt too; SanaSprintPipeline knows none.
        guidance = {"do_classifier_free_guidance": False} if "negative_prompt" in call else {}
        embeds, masks, *_ = pipeline.encode_prompt(
            prompts,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=instruction,
            **guidance,
        )
        return [{"prompt_embeds": embed[mask.bool()]} for embed, mask in zip(embeds, masks, strict=True)]

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        plain = {} if self.config.complex_human_instruction else {"complex_human_instruction": None}
        return super().snippet_arguments(steps) | {
            "guidance_scale": self.config.guidance_scale,
            "use_resolution_binning": False,
            "max_sequence_length": self.max_sequence_length,
            **plain,
        }
