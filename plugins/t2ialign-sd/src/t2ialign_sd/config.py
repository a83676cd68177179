"""The spec's ``[backend]`` tables; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from t2ialign import checkpoints
from t2ialign.config import Checkpoint, LoraFormat
from t2ialign.foreign import read_object
from t2ialign.idle import Idle
from t2ialign.remarks.text_limits import TextLimit
from t2ialign_diffusers.config import GuidedConfig

#: SDXL's pipeline can move latents channel by channel.
XL_LATENTS = ("scaling_factor", "latents_mean", "latents_std")
CHECKPOINT_TEXT = "hub id, local folder, or 'pkg:<package>/<path>'"


class UnetConfig(GuidedConfig):
    """Models with a UNet."""

    def lora_formats(self) -> dict[LoraFormat, str]:
        return {
            **super().lora_formats(),
            "kohya": "ComfyUI, Forge, AUTOMATIC1111, kohya's scripts, diffusers",
        }

    def usual_formats(self) -> list[LoraFormat]:
        return ["diffusers", "kohya"]

    def lora_targets(self) -> list[str]:
        return ["to_q", "to_k", "to_v", "to_out.0"]

    def trainable_folder(self) -> str:
        return "unet"


class Sd15Config(UnetConfig):
    """``kind = "sd15"``."""

    keeps_clipping: ClassVar[bool] = False
    checkpoint: Checkpoint = Field("stable-diffusion-v1-5/stable-diffusion-v1-5", description=CHECKPOINT_TEXT)
    guidance_scale: float = Field(7.5, ge=0, description="classifier-free guidance; at most 1 switches it off")


class SdTurboConfig(UnetConfig):
    """``kind = "sd-turbo"``."""

    keeps_clipping: ClassVar[bool] = False
    usual_steps: ClassVar[int] = 1
    checkpoint: Checkpoint = Field("stabilityai/sd-turbo", description=CHECKPOINT_TEXT)


class SdxlConfig(UnetConfig):
    """``kind = "sdxl"``."""

    has_buckets: ClassVar[bool] = True
    latent_keys: ClassVar[tuple[str, ...]] = XL_LATENTS
    checkpoint: Checkpoint = Field("stabilityai/stable-diffusion-xl-base-1.0", description=CHECKPOINT_TEXT)
    guidance_scale: float = Field(5.0, ge=0, description="classifier-free guidance; at most 1 switches it off")


class SdxlTurboConfig(UnetConfig):
    """``kind = "sdxl-turbo"``."""

    latent_keys: ClassVar[tuple[str, ...]] = XL_LATENTS
    usual_steps: ClassVar[int] = 1
    checkpoint: Checkpoint = Field("stabilityai/sdxl-turbo", description=CHECKPOINT_TEXT)


class HyperSdConfig(UnetConfig):
    """``kind = "hyper-sd"``."""

    has_buckets: ClassVar[bool] = True
    latent_keys: ClassVar[tuple[str, ...]] = XL_LATENTS
    usual_steps: ClassVar[int] = 1
    checkpoint: Checkpoint = Field(
        "stabilityai/stable-diffusion-xl-base-1.0", description=f"{CHECKPOINT_TEXT} of all but the UNet's weights"
    )
    network_checkpoint: Checkpoint = Field("ByteDance/Hyper-SD", description=f"{CHECKPOINT_TEXT} of the UNet's weights")
    network_file: str = Field("Hyper-SDXL-1step-Unet.safetensors", description="file inside network_checkpoint")


class PixArtConfig(GuidedConfig):
    """Models of the PixArt family."""

    has_buckets: ClassVar[bool] = True
    released_multiple: ClassVar[int] = 16
    max_sequence_length: int = Field(120, ge=1, description="prompt tokens kept")

    def text_limit(self, folder: Path) -> TextLimit:
        return TextLimit("tokenizer", self.max_sequence_length, "max_sequence_length raises that")

    def lora_formats(self) -> dict[LoraFormat, str]:
        return {
            **super().lora_formats(),
            "diffusers": "ComfyUI, t2ialign (load_lora_file)",
        }

    def lora_targets(self) -> list[str]:
        return ["to_q", "to_k", "to_v", "to_out.0"]


class PixArtDmdConfig(PixArtConfig):
    """``kind = "pixart-dmd"``."""

    usual_steps: ClassVar[int] = 1
    checkpoint: Checkpoint = Field(
        "PixArt-alpha/PixArt-XL-2-1024-MS", description=f"{CHECKPOINT_TEXT} of text encoder and autoencoder"
    )
    network_checkpoint: Checkpoint = Field(
        "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512", description=f"{CHECKPOINT_TEXT} of transformer and scheduler"
    )

    def network_folder(self) -> Path | None:
        folder = checkpoints.on_disk(self.network_checkpoint)
        return folder and folder / "transformer"


class PixArtSigmaConfig(PixArtConfig):
    """``kind = "pixart-sigma"``."""

    checkpoint: Checkpoint = Field("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", description=CHECKPOINT_TEXT)
    guidance_scale: float = Field(4.5, ge=0, description="classifier-free guidance; at most 1 switches it off")
    max_sequence_length: int = Field(300, ge=1, description="prompt tokens kept")

    def trainable_folder(self) -> str:
        return "transformer"


class Sd3Config(GuidedConfig):
    """``kind = "sd3"``."""

    latent_keys: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    released_multiple: ClassVar[int] = 16
    checkpoint: Checkpoint = Field("stabilityai/stable-diffusion-3.5-medium", description=CHECKPOINT_TEXT)
    guidance_scale: float = Field(4.5, ge=0, description="classifier-free guidance; at most 1 switches it off")
    max_sequence_length: int = Field(256, ge=1, le=512, description="T5 tokens kept")

    def text_limit(self, folder: Path) -> TextLimit:
        return TextLimit("tokenizer_3", self.max_sequence_length, "max_sequence_length raises that, up to 512")

    def lora_formats(self) -> dict[LoraFormat, str]:
        return {
            **super().lora_formats(),
            "diffusers": "diffusers, ComfyUI",
            "kohya": "ComfyUI, kohya's scripts, Forge (3.5 medium)",
        }

    def lora_targets(self) -> list[str]:
        joint = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_q", "to_k", "to_v", "to_out.0"]
        return [f"attn.{name}" for name in joint]

    def trainable_folder(self) -> str:
        return "transformer"


class FluxConfig(GuidedConfig):
    """``kind = "flux"``."""

    latent_keys: ClassVar[tuple[str, ...]] = ("scaling_factor", "shift_factor")
    usual_steps: ClassVar[int] = 4
    packing: ClassVar[int] = 2
    released_multiple: ClassVar[int] = 16
    checkpoint: Checkpoint = Field("black-forest-labs/FLUX.1-schnell", description=CHECKPOINT_TEXT)
    distilled_guidance: float = Field(
        3.5, ge=0, description="an input of FLUX.1-dev's network; FLUX.1-schnell has none and ignores it"
    )
    max_sequence_length: int | None = Field(
        None,
        ge=1,
        le=512,
        description="T5 tokens kept; default: 512 for FLUX.1-dev, 256, its most, for FLUX.1-schnell",
    )

    def text_limit(self, folder: Path) -> TextLimit:
        tokens = self.max_sequence_length or (512 if self.distilled(folder) else 256)
        return TextLimit("tokenizer_2", tokens, "max_sequence_length raises that" if tokens < 256 else "")

    @staticmethod
    def distilled(folder: Path) -> bool:
        """Whether guidance is an input of the network, as in FLUX.1-dev; FLUX.1-schnell has none."""
        file = folder / "transformer/config.json"
        return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8")).get("guidance_embeds"))

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        found, folder = super().remarks(prompts), self.folder()
        if folder is not None and self.distilled_guidance != 3.5 and not self.distilled(folder):
            found.append(f"distilled_guidance = {self.distilled_guidance:g}: this network has no such input")
        return found

    def lora_formats(self) -> dict[LoraFormat, str]:
        return {
            **super().lora_formats(),
            "diffusers": "diffusers, ComfyUI, Forge",
            "kohya": "ComfyUI, Forge, kohya's scripts, diffusers",
        }

    def lora_targets(self) -> list[str]:
        return ["to_q", "to_k", "to_v", "to_out.0"]

    def trainable_folder(self) -> str:
        return "transformer"


class Flux2Config(GuidedConfig):
    """``kind = "flux2-klein"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "guidance_scale",
            "the checkpoint was distilled and has no guidance",
            lambda own, _: own.guidance_scale > 1 and own.distilled(),
        ),
    )
    usual_steps: ClassVar[int] = 4
    packing: ClassVar[int] = 2
    released_multiple: ClassVar[int] = 16
    checkpoint: Checkpoint = Field("black-forest-labs/FLUX.2-klein-4B", description=CHECKPOINT_TEXT)
    guidance_scale: float = Field(
        1.0, ge=0, description="classifier-free guidance of the base models, usually 4.0; the others have none"
    )
    max_sequence_length: int = Field(512, ge=1, description="prompt tokens kept, chat template included")

    @model_validator(mode="after")
    def _klein(self) -> Flux2Config:
        if self.checkpoint.rstrip("/").rsplit("/", 1)[-1].lower().startswith("flux.2-dev"):
            raise ValueError(
                f"checkpoint = '{self.checkpoint}': FLUX.2 dev has another pipeline and text encoder (Mistral 3), whose"
                " processor needs torchvision; this backend draws FLUX.2 klein"
            )
        return self

    @model_validator(mode="after")
    def _empty(self) -> Flux2Config:
        if self.negative_prompt:
            raise ValueError("guidance leads away from the empty prompt in FLUX.2 klein: leave negative_prompt out")
        return self

    def text_limit(self, folder: Path) -> TextLimit:
        template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        return TextLimit("tokenizer", self.max_sequence_length, "max_sequence_length raises that", template)

    def distilled(self) -> bool:
        """Whether the checkpoint was distilled to a few steps without guidance: its index says, or else its name."""
        folder = self.folder()
        try:
            if folder is not None:
                return bool(read_object(folder / "model_index.json").get("is_distilled"))
        except (OSError, ValueError):  # whoever opens the checkpoint will tell
            pass
        return "klein" in self.checkpoint and "base" not in self.checkpoint

    def provides(self) -> set[str]:
        return super().provides() | ({"few-step"} if self.distilled() else set())

    def lora_formats(self) -> dict[LoraFormat, str]:
        return {
            **super().lora_formats(),
            "diffusers": "diffusers, ComfyUI",
            "kohya": "ComfyUI, diffusers",
        }

    def lora_targets(self) -> list[str]:
        return ["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj"]

    def trainable_folder(self) -> str:
        return "transformer"


class QwenImageConfig(GuidedConfig):
    """``kind = "qwen-image"``."""

    latent_keys: ClassVar[tuple[str, ...]] = ("latents_mean", "latents_std")
    released_multiple: ClassVar[int] = 16
    checkpoint: Checkpoint = Field("Qwen/Qwen-Image", description=CHECKPOINT_TEXT)
    guidance_scale: float = Field(
        4.0, ge=0, description="classifier-free guidance that keeps the output's length; at most 1 switches it off"
    )
    max_sequence_length: int = Field(512, ge=1, le=1024, description="prompt tokens kept")

    @model_validator(mode="after")
    def _whole_frames(self) -> QwenImageConfig:
        if "decoder" in self.gradient_checkpointing and (self.vae_tiling or self.vae_slicing):
            raise ValueError(
                "Qwen-Image's decoder computes nothing again that it draws in tiles or slices: with"
                " gradient_checkpointing = ['decoder'] take vae_micro_batch = 1 in place of vae_tiling and vae_slicing"
            )
        return self

    def text_limit(self, folder: Path) -> TextLimit:
        """The text in front of the prompt is read, and is no part of what is kept."""
        template = "{}<|im_end|>\n<|im_start|>assistant\n"
        return TextLimit("tokenizer", self.max_sequence_length, "max_sequence_length raises that, up to 1024", template)

    def lora_formats(self) -> dict[LoraFormat, str]:
        return {
            **super().lora_formats(),
            "diffusers": "diffusers, ComfyUI",
            "kohya": "ComfyUI, diffusers",
        }

    def lora_targets(self) -> list[str]:
        return ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_q", "to_k", "to_v", "to_out.0"]

    def trainable_folder(self) -> str:
        return "transformer"
