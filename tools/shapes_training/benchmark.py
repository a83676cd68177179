"""The compositional benchmark: exact accuracy per family, in the manner of GenEval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, islice

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor

from shapes_training.autoencoder import decode
from shapes_training.data import draw_noise
from shapes_training.loop import generator_for
from shapes_training.prompts import benchmark_captions
from t2ialign_shapes import detector
from t2ialign_shapes.captions import FAMILIES, Caption

Generator = Callable[[Tensor, list[str]], Tensor]
"""(noise, prompts) -> scaled latents."""

CHUNK = 64
"""Images per forward pass."""


@torch.no_grad()
def generate(model: Generator, autoencoder: AutoencoderDC | AutoencoderKL, prompts: list[str], noise: Tensor) -> Tensor:
    """Images [B, 3, 32, 32] in [0, 1]."""
    starts = range(0, len(prompts), CHUNK)
    chunks = (model(noise[i : i + CHUNK], prompts[i : i + CHUNK]) for i in starts)
    return torch.cat([decode(autoencoder, latents) for latents in chunks])


def balanced_captions(per_family: int) -> list[Caption]:
    """Benchmark captions, ``per_family`` of every family.

    Captions take turns, so that families with few of them give as many images as the others.
    """
    by_family: dict[str, list[Caption]] = {family: [] for family in FAMILIES}
    for caption in benchmark_captions():
        by_family[caption.family].append(caption)
    return [c for group in by_family.values() for c in islice(cycle(group), per_family)]


def benchmark_images(
    model: Generator, autoencoder: AutoencoderDC | AutoencoderKL, per_family: int, seed: int = 0
) -> tuple[list[Caption], Tensor]:
    """Generate ``per_family`` images for the benchmark captions of every family."""
    captions = balanced_captions(per_family)
    channels = autoencoder.config.latent_channels
    noise = draw_noise(len(captions), generator_for("benchmark", seed), channels)
    return captions, generate(model, autoencoder, [str(caption) for caption in captions], noise)


def score_generator(
    model: Generator, autoencoder: AutoencoderDC | AutoencoderKL, per_family: int, seed: int = 0
) -> dict:
    """Accuracy and graded score on the benchmark; see `benchmark_images` and `summarize`."""
    captions, images = benchmark_images(model, autoencoder, per_family, seed)
    return summarize(captions, detector.check(images, captions), detector.graded(images, captions))


def summarize(captions: list[Caption], right: Tensor, grade: Tensor) -> dict:
    """Accuracy and graded score per family and overall.

    The overall accuracy is the mean of the six families', as in GenEval, with the standard error
    of that mean.
    """
    rows = defaultdict(list)
    for index, caption in enumerate(captions):
        rows[caption.family].append(index)
    families = {}
    for family in FAMILIES:
        n = len(rows[family])
        p = right[rows[family]].float().mean().item()
        families[family] = {
            "n": n,
            "accuracy": round(p, 4),
            "se": round(math.sqrt(p * (1 - p) / n), 4),
            "graded": round(grade[rows[family]].mean().item(), 4),
        }
    mean = {key: round(sum(f[key] for f in families.values()) / len(families), 4) for key in ("accuracy", "graded")}
    se = math.sqrt(sum(f["se"] ** 2 for f in families.values())) / len(families)
    return {"n": len(captions), **mean, "se": round(se, 4), "families": families}
