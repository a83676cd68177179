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
    register(
        "clip-diversity",
        "t2ialign_rewards.clip_diversity:ClipDiversity",
        config=config.ClipDiversityConfig,
        summary="How much the images of one prompt differ: mean cosine distance of CLIP embeddings; a diagnostic",
        provides={"per-prompt"},
    )
    register(
        "hps",
        "t2ialign_rewards.hps:Hps",
        config=config.HpsConfig,
        summary="HPSv2 and HPSv2.1: human preference, cosine, about 0.20 to 0.35",
        provides=DIFFERENTIABLE,
    )
    register(
        "hpsv3",
        "t2ialign_rewards.hpsv3:HpsV3",
        config=config.HpsV3Config,
        summary="HPSv3: human preference by a Qwen2-VL with a regression head",
        provides=DIFFERENTIABLE,
    )
    register(
        "imagereward",
        "t2ialign_rewards.imagereward:ImageReward",
        config=config.ImageRewardConfig,
        summary="ImageReward v1.0: human preference, about standard normal",
        provides=DIFFERENTIABLE,
    )
    register(
        "aesthetic",
        "t2ialign_rewards.aesthetic:Aesthetic",
        config=config.AestheticConfig,
        summary="LAION aesthetic predictor on CLIP ViT-L/14, 1 to 10; no prompt",
        provides=DIFFERENTIABLE,
    )
    register(
        "mps",
        "t2ialign_rewards.mps:Mps",
        config=config.MpsConfig,
        summary="Multi-dimensional preference score, overall, about 5 to 16",
        provides=DIFFERENTIABLE,
    )
    register(
        "jpeg-incompressibility",
        "t2ialign_rewards.jpeg:JpegIncompressibility",
        config=config.JpegConfig,
        summary="Size of the JPEG in kB: more detail is better; no gradient",
    )
    register(
        "jpeg-compressibility",
        "t2ialign_rewards.jpeg:JpegCompressibility",
        config=config.JpegConfig,
        summary="Minus the size of the JPEG in kB: less detail is better; no gradient",
    )
    register(
        "remote",
        "t2ialign_rewards.remote:Remote",
        config=config.RemoteConfig,
        summary="Scores from an HTTP service, t2ialign serve or any other; no gradient",
    )
    register(
        "random-control",
        "t2ialign_rewards.random_control:RandomControl",
        config=t2ialign.Config,
        summary="Random numbers decided by the pixels: the control for 'does this reward matter?'",
    )
