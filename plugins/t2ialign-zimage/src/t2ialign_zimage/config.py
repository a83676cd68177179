"""The spec's ``[backend]`` table; imports no torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from t2ialign.config import Checkpoint
from t2ialign.diffusers_config import GuidedConfig


class ZImageConfig(GuidedConfig):
    """``kind = "z-image"``."""

    usual_steps: ClassVar[int] = 8
    checkpoint: Checkpoint = Field(
        "Tongyi-MAI/Z-Image-Turbo", description="hub id, local folder, or 'pkg:<package>/<path>' of a ZImagePipeline"
    )
    guidance_scale: float = Field(0.0, ge=0, description="s of pos + s (pos - neg); 0, as Turbo was distilled, is none")
    max_sequence_length: int = Field(512, ge=1, description="prompt tokens kept, chat template included")

    def lora_targets(self) -> list[str]:
        return ["to_q", "to_k", "to_v", "to_out.0", "linear", "w1", "w2", "w3"]

    def trainable_folder(self) -> str:
        return "transformer"
