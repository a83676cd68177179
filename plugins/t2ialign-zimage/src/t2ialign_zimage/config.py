"""The spec's ``[backend]`` table; imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from t2ialign.config import CHECKPOINT, Checkpoint, LoraFormat
from t2ialign.remarks.text_limits import TextLimit
from t2ialign_diffusers.config import GuidedConfig


class ZImageConfig(GuidedConfig):
    """``kind = "z-image"``."""

    latent_keys: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    usual_steps: ClassVar[int] = 8
    packing: ClassVar[int] = 2
    released_multiple: ClassVar[int] = 16
    checkpoint: Checkpoint = Field(
        "Tongyi-MAI/Z-Image-Turbo", description="hub id, local folder, or 'pkg:<package>/<path>' of a ZImagePipeline"
    )
    network_checkpoint: Annotated[str | None, CHECKPOINT] = Field(
        None,
        description="hub id or folder that has the transformer's weights in one file, such as"
        " 'jayn7/Z-Image-Turbo-GGUF'; default: the checkpoint's own weights",
    )
    network_file: str | None = Field(None, description="that file, .gguf or .safetensors")
    guidance_scale: float = Field(0.0, ge=0, description="s of pos + s (pos - neg); 0, as Turbo was distilled, is none")
    max_sequence_length: int = Field(512, ge=1, description="prompt tokens kept, chat template included")

    @model_validator(mode="after")
    def _network(self) -> ZImageConfig:
        if (self.network_checkpoint is None) != (self.network_file is None):
            raise ValueError("network_checkpoint and network_file belong together: give both or neither")
        if self.is_gguf and self.quantization:
            raise ValueError("the weights in a .gguf file are quantised already: leave quantization out")
        if self.is_gguf and self.base_lora:
            raise ValueError("the weights in a .gguf file are quantised, and take no base_lora: leave one of them out")
        return self

    def lora_formats(self) -> dict[LoraFormat, str]:
        formats: dict[LoraFormat, str] = {**super().lora_formats(), "diffusers": "diffusers, ComfyUI"}
        return {form: clients for form, clients in formats.items() if form != "fused" or not self.is_gguf}

    @property
    def is_gguf(self) -> bool:
        """Whether the network's weights stay quantised as their file has them."""
        return bool(self.network_file and self.network_file.endswith(".gguf"))

    def withholds(self) -> dict[str, str]:
        lost = {"weights": "take a network_file in .safetensors"} if self.is_gguf else {}
        return super().withholds() | lost

    def guided(self) -> bool:
        return self.guidance_scale > 0

    def text_limit(self, folder: Path) -> TextLimit:
        template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
        return TextLimit("tokenizer", self.max_sequence_length, "max_sequence_length raises that", template)

    def lora_targets(self) -> list[str]:
        return ["to_q", "to_k", "to_v", "to_out.0", "linear", "w1", "w2", "w3"]

    def trainable_folder(self) -> str:
        return "transformer"
