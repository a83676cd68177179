"""The spec's table for VAR; imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from t2ialign import BackendConfig, ImageSize, checkpoints, height_width
from t2ialign.config import Checkpoint
from t2ialign.idle import Idle

#: What holds for every model that draws token by token.
GREEDY = (
    Idle(
        "top_k",
        "nothing is drawn, so all images of a prompt are the same, whatever their seeds",
        lambda own, spec: own.top_k == 1 and max(spec.prompts.images_per_prompt, spec.evaluation.images_per_prompt) > 1,
        "one image per prompt, or top_k = 0",
    ),
)
PLAIN = (
    Idle(
        "guidance_scale",
        "with optimizer.policy = 'plain' training images are drawn without it; grids and evaluation have it",
        lambda own, spec: getattr(spec.optimizer.config, "policy", "") == "plain",
        "set optimizer.policy = 'guided' or 'surrogate', or nothing",
    ),
    Idle(
        "top_k top_p",
        "unless optimizer.policy = 'surrogate' training images are drawn without it; grids and evaluation have it",
        lambda own, spec: getattr(spec.optimizer.config, "policy", "") in ("plain", "guided"),
        "set optimizer.policy = 'surrogate', or nothing",
    ),
)


def has_config(reference: str) -> bool:
    """Whether a checkpoint on disk says its own sizes."""
    folder = checkpoints.on_disk(reference)
    return folder is not None and (folder / "config.json").is_file()


def printed_options(config: BackendConfig, *always: str) -> str:
    """Arguments of a config on a model card: some always, the others where they are no defaults."""
    fields = {name: field for name, field in type(config).model_fields.items() if name not in ("lora", "shard")}
    shown = (name for name, field in fields.items() if name in always or getattr(config, name) != field.default)
    return ", ".join(f"{name}={getattr(config, name)!r}" for name in shown)


class VarConfig(BackendConfig):
    """``[backend]`` with ``kind = "var"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("top_p", "top_k = 1 draws no code", lambda own, _: own.top_k == 1),
        Idle("depth", "the checkpoint's config.json has its own", lambda own, _: has_config(own.checkpoint)),
        *GREEDY,
        *PLAIN,
    )

    checkpoint: Checkpoint = Field(
        "FoundationVision/var",
        description="hub id or folder with var_d<depth>.pth and vae_ch160v4096z32.pth, or a folder (or 'pkg:...')"
        " with config.json, var.safetensors, vae.safetensors and classes.json",
    )
    depth: Literal[16, 20, 24, 30, 36] = Field(
        16,
        description="released size: 16, 20, 24, 30 (256 px) or 36 (512 px); a checkpoint with config.json has its own",
    )
    image_size: ImageSize | None = Field(
        None, description="VAR draws squares of its checkpoint's own size alone: 256 pixels, 512 at depth 36"
    )
    guidance_scale: float = Field(
        4.0, ge=0, description="classifier-free guidance at the last scale; grows linearly from 0 at the first one"
    )
    top_k: int = Field(900, ge=0, description="sample among the k likeliest codes; 0 = all, 1 = greedy")
    top_p: float = Field(0.95, gt=0, le=1, description="sample among the likeliest codes of this total probability")
    more_smooth: bool = Field(
        False, description="mix code vectors by Gumbel-softmax in place of sampling one: smoother pictures, no tokens"
    )

    def misfits(self) -> dict[str, str]:
        why = "" if has_config(self.checkpoint) else self.only(512 if self.depth == 36 else 256)
        return super().misfits() | ({"image_size": why} if why else {})

    def only(self, side: int) -> str:
        """Why ``image_size`` cannot be had from a checkpoint that draws squares of one size; "" where it can."""
        fits = self.image_size is None or height_width(self.image_size) == (side, side)
        return "" if fits else f"VAR draws squares alone, this checkpoint's have {side} pixels a side"

    @classmethod
    def starter_prompts(cls) -> list[str]:
        """Classes of ImageNet, which the released checkpoints draw."""
        return ["goldfish", "golden retriever", "volcano", "espresso"]

    def withholds(self) -> dict[str, str]:
        return {"tokens": "set more_smooth = false"} if self.more_smooth else {}

    def lora_targets(self) -> list[str]:
        return ["mat_qkv", "proj", "fc1", "fc2", "ada_lin.1", "head"]
