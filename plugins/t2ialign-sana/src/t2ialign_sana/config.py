"""The spec's ``[backend]`` tables for Sana; imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from t2ialign.config import Checkpoint
from t2ialign.remarks.text_limits import TextLimit
from t2ialign_diffusers.config import DiffusersConfig, GuidedConfig


class SanaTextConfig(DiffusersConfig):
    """How prompts are encoded, for all Sana models."""

    released_multiple: ClassVar[int] = 32
    has_buckets: ClassVar[bool] = True
    max_sequence_length: int = Field(300, ge=1, description="prompt tokens kept, at most what the tokenizer allows")
    complex_human_instruction: bool = Field(
        True, description="put the pipeline's default instruction in front of every prompt, as a plain call does"
    )

    def text_limit(self, folder: Path) -> TextLimit:
        own = TextLimit().own(folder)
        tokens = min(self.max_sequence_length, own or self.max_sequence_length)
        return TextLimit("tokenizer", tokens, "max_sequence_length raises that" if own is None or tokens < own else "")

    def lora_targets(self) -> list[str]:
        return ["to_q", "to_k", "to_v", "to_out.0", "linear_1", "linear_2", "proj_out", "linear"]

    def trainable_folder(self) -> str:
        return "transformer"


class SanaSprintConfig(SanaTextConfig):
    """``kind = "sana-sprint"``."""

    usual_steps: ClassVar[int] = 1
    checkpoint: Checkpoint = Field(
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        description="hub id, local folder, or 'pkg:<package>/<path>' of a SanaSprintPipeline",
    )
    guidance_scale: float = Field(
        4.5, ge=0, description="distilled guidance: an input of the network, not a second forward pass"
    )


class SanaConfig(SanaTextConfig, GuidedConfig):
    """``kind = "sana"``."""

    checkpoint: Checkpoint = Field(
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        description="hub id, local folder, or 'pkg:<package>/<path>' of a SanaPipeline",
    )
    guidance_scale: float = Field(4.5, ge=0, description="classifier-free guidance; at most 1 switches it off")
