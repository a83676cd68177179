"""The spec's table for VAR; imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from t2ialign import BackendConfig
from t2ialign.config import Checkpoint


class VarConfig(BackendConfig):
    """``[backend]`` with ``kind = "var"``."""

    checkpoint: Checkpoint = Field(
        "FoundationVision/var",
        description="hub id or folder with var_d<depth>.pth and vae_ch160v4096z32.pth, or a folder (or 'pkg:...')"
        " with config.json, var.safetensors, vae.safetensors and classes.json",
    )
    depth: Literal[16, 20, 24, 30, 36] = Field(
        16,
        description="released size: 16, 20, 24, 30 (256 px) or 36 (512 px); a checkpoint with config.json has its own",
    )
    guidance_scale: float = Field(
        4.0, ge=0, description="classifier-free guidance at the last scale; grows linearly from 0 at the first one"
    )
    top_k: int = Field(900, ge=0, description="sample among the k likeliest codes; 0 = all, 1 = greedy")
    top_p: float = Field(0.95, gt=0, le=1, description="sample among the likeliest codes of this total probability")
    more_smooth: bool = Field(
        False, description="mix code vectors by Gumbel-softmax in place of sampling one: smoother pictures, no tokens"
    )

    @classmethod
    def starter_prompts(cls) -> list[str]:
        """Classes of ImageNet, which the released checkpoints draw."""
        return ["goldfish", "golden retriever", "volcano", "espresso"]

    def withholds(self) -> dict[str, str]:
        return {"tokens": "set more_smooth = false"} if self.more_smooth else {}

    def lora_targets(self) -> list[str]:
        return ["mat_qkv", "proj", "fc1", "fc2", "ada_lin.1", "head"]
