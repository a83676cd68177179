"""Stage 1: the autoencoder, 32x32 pixels to 8 latent channels of 8x8."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor

from shapes_training.data import draw_captions
from shapes_training.loop import Recipe, Stage, generator_for, train
from shapes_training.models import build_autoencoder
from t2ialign_shapes import detector
from t2ialign_shapes.captions import Caption
from t2ialign_shapes.layout import sample_layout
from t2ialign_shapes.render import render

RECIPE = Recipe(steps=1200, batch=64, learning_rate=3e-3, weight_decay=1e-4, warmup=50, evaluate_every=300)

LATENT_NOISE = 0.1
"""Noise on the latents during training: a generator's latents will not be exact."""

FADED_CONTRAST = (0.2, 0.9)
FADED_SHARE = 0.25
"""Share of pictures with faded objects, for the washed-out base uses the same autoencoder."""


def draw_images(captions: list[Caption], generator: torch.Generator) -> Tensor:
    """Random renders of captions, [B, 3, 32, 32] in [0, 1], some of them faded."""
    layout = sample_layout(captions, generator)
    faded = torch.rand(len(captions), generator=generator) < FADED_SHARE
    low, high = FADED_CONTRAST
    contrast = low + (high - low) * torch.rand(len(captions), generator=generator)
    layout.contrast = torch.where(faded, contrast, 1.0)
    return render(layout)


def loss(model: AutoencoderDC, images: Tensor, generator: torch.Generator) -> Tensor:
    """L1 + 2 MSE of the reconstruction, plus a pull of every channel to mean 0, variance 1.

    Latents are deterministic with fixed noise: a variational bottleneck of this size wastes its
    first steps and collapses channels.
    """
    latents = model.encode(2 * images - 1).latent
    noise = torch.randn(latents.shape, generator=generator)
    error = model.decode(latents + LATENT_NOISE * noise).sample - (2 * images - 1)
    std, mean = torch.std_mean(latents, (0, 2, 3))
    moments = (mean.square() + (std - 1).square()).mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.02 * moments


def encode(model: AutoencoderDC | AutoencoderKL, images: Tensor) -> Tensor:
    """Images in [0, 1] to scaled latents, the space of the generators."""
    encoded = model.encode(2 * images - 1)
    latents = encoded.latent if isinstance(model, AutoencoderDC) else encoded.latent_dist.mode()
    return latents * model.config.scaling_factor


def decode(model: AutoencoderDC | AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents to images in [0, 1]."""
    return (model.decode(latents / model.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def evaluate(model: AutoencoderDC | AutoencoderKL, count: int = 512) -> dict[str, float]:
    """PSNR in dB, and how often the detector still agrees with the caption after a round trip."""
    generator = generator_for("autoencoder-evaluation")
    captions = draw_captions(count, generator)
    images = render(sample_layout(captions, generator))
    decoded = decode(model, encode(model, images))
    error = (decoded - images).square().mean((1, 2, 3))
    right = detector.check(decoded, captions).float()
    counting = torch.tensor([caption.family == "counting" for caption in captions])
    return {
        "psnr_db": round((-10 * error.log10()).mean().item(), 2),
        "accuracy": round(right.mean().item(), 4),
        "accuracy_counting": round(right[counting].mean().item(), 4),
    }


def run(work: Path, recipe: Recipe = RECIPE) -> AutoencoderDC:
    """Train the autoencoder, or load the trained one; latents are scaled to unit variance."""
    torch.manual_seed(recipe.seed)
    model = build_autoencoder()
    train(
        Stage(
            name="autoencoder",
            work=work,
            model=model,
            loss=lambda step, g: loss(model, draw_images(draw_captions(recipe.batch, g), g), g),
            evaluate=lambda: evaluate(model),
        ),
        recipe,
    )
    model.eval().requires_grad_(False)
    generator = generator_for("scaling-factor")
    with torch.no_grad():
        images = draw_images(draw_captions(512, generator), generator)
        latents = model.encode(2 * images - 1).latent
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return model
