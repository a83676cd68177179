"""The entry point: declarations only, so that listing and validating import no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import t2ialign
from t2ialign_rewards import config

DIFFERENTIABLE = {"differentiable"}


@t2ialign.hookimpl
def t2ialign_rewards(register: Callable[..., Any]) -> None:
    """Register every reward of this package."""
    register(
        "pickscore",
        "t2ialign_rewards.clip_scores:PickScore",
        config=config.PickScoreConfig,
        summary="PickScore v1: human preference, exp(logit_scale) * cos, about 17 to 24",
        provides=DIFFERENTIABLE,
    )
    register(
        "clipscore",
        "t2ialign_rewards.clip_scores:ClipScore",
        config=config.ClipScoreConfig,
        summary="Prompt alignment: scaled cosine of any CLIP model",
        provides=DIFFERENTIABLE,
    )
    register(
        "clip-text",
        "t2ialign_rewards.clip_scores:ClipScore",
        config=config.ClipTextConfig,
        summary="(cos + 1) / 2 of image and prompt, CLIP ViT-B/32 (HyperscaleES)",
        provides=DIFFERENTIABLE,
    )
    register(
        "clip-aesthetic",
        "t2ialign_rewards.clip_scores:ClipScore",
        config=config.ClipAestheticConfig,
        summary="(cos + 1) / 2 of image and a text that praises it, CLIP ViT-B/32 (HyperscaleES)",
        provides=DIFFERENTIABLE,
    )
    register(
        "no-artifacts",
        "t2ialign_rewards.clip_scores:ClipScore",
        config=config.NoArtifactsConfig,
        summary="1 - (cos + 1) / 2 of image and a text that names defects, CLIP ViT-B/32 (HyperscaleES)",
        provides=DIFFERENTIABLE,
    )
