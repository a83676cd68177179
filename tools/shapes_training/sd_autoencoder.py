"""The autoencoder in the layout of Stable Diffusion, 32x32 pixels to 4 latent channels of 8x8."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from shapes_training.autoencoder import encode, evaluate
from shapes_training.data import draw_captions
from shapes_training.loop import Recipe, Stage, generator_for, train
from shapes_training.sd_models import POSTERIOR_STD, build_sd_autoencoder
from t2ialign_shapes.layout import sample_layout
from t2ialign_shapes.render import render

RECIPE = Recipe(
    steps=1200,
    batch=64,
    learning_rate=3e-3,
    weight_decay=0.0,
    warmup=50,
    ema=0.99,
    evaluate_every=300,
)

MOMENT_WEIGHT = 0.02


def draw_images(count: int, generator: torch.Generator) -> Tensor:
    """Random renders of random captions, [count, 3, 32, 32] in [0, 1]."""
    return render(sample_layout(draw_captions(count, generator), generator))


def loss(model: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """L1 + 2 MSE of the reconstruction, plus a pull of the channels to mean 0, covariance I.

    The latents are the posterior's mean with noise of a fixed width. A width that is learned, as
    in a variational autoencoder, collapses channels at this size; so would four channels that are
    only pulled to unit variance one by one, because the background can fill all of them.
    """
    pixels = 2 * images - 1
    latents = model.encode(pixels).latent_dist.mode()
    noise = POSTERIOR_STD * torch.randn(latents.shape, generator=generator)
    error = model.decode(latents + noise).sample - pixels
    cells = latents.movedim(1, -1).flatten(0, 2)  # [B * 64, 4]
    excess = torch.cov(cells.T) - torch.eye(cells.shape[1])
    moments = cells.mean(0).square().mean() + excess.square().mean()
    return error.abs().mean() + 2 * error.square().mean() + MOMENT_WEIGHT * moments


def run(work: Path, recipe: Recipe = RECIPE) -> AutoencoderKL:
    """Train the autoencoder, or load the trained one; latents are scaled to unit variance."""
    torch.manual_seed(recipe.seed)
    model = build_sd_autoencoder()
    train(
        Stage(
            name="sd-autoencoder",
            work=work,
            model=model,
            loss=lambda step, g: loss(model, draw_images(recipe.batch, g), g),
            evaluate=lambda: evaluate(model),
        ),
        recipe,
    )
    model.eval().requires_grad_(False)
    latents = encode(model, draw_images(512, generator_for("sd-scaling-factor")))
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return model
