"""A small decoder beside that of the Sana Sprint checkpoints, distilled from it: for drawing while searching.

It is an AutoencoderTiny of diffusers. Its encoder is not trained, for nothing calls it. Needs the shipped checkpoints.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from shapes_training.autoencoder import LATENT_NOISE, draw_images, encode
from shapes_training.autoencoder import decode as decode_with
from shapes_training.benchmark import CHUNK
from shapes_training.data import draw_captions, draw_noise
from shapes_training.loop import Recipe, Stage, generator_for, train
from shapes_training.models import LATENT_CHANNELS, SanaSprint

RECIPE = Recipe(
    steps=3600, batch=64, learning_rate=3e-3, weight_decay=1e-4, warmup=50, save_every=300, evaluate_every=900, ema=0.99
)
WIDTH, BLOCKS = 12, (2, 1, 0)
BASES = ("sprint", "sprint-washed")
PERTURBED = (0.02, 0.05, 0.1, 0.15)
"""Relative sizes of noise on the generators' weights, for what a search draws is not what the base draws."""
POOL, HELD_OUT = 6144, 512


def build() -> AutoencoderTiny:
    """32x32 pixels from 8 channels of 8x8; latents as the generators have them, scaled."""
    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        decoder_block_out_channels=(WIDTH,) * len(BLOCKS),
        num_decoder_blocks=BLOCKS,
        encoder_block_out_channels=(4,) * len(BLOCKS),
        num_encoder_blocks=(0,) * len(BLOCKS),
    )


@torch.no_grad()
def draw_latents(bases: list[SanaSprint], autoencoder: Any, count: int, generator: torch.Generator) -> Tensor:
    """Scaled latents (count, 8, 8, 8): a quarter of renders, with noise; the others of generators, most perturbed."""
    captions = draw_captions(count // 4, generator)
    rendered = encode(autoencoder, draw_images(captions, generator))
    parts = [rendered + LATENT_NOISE * torch.randn(rendered.shape, generator=generator)]
    sources = [(base, size) for base in bases for size in (0.0, *PERTURBED)]
    each = (count - len(rendered)) // len(sources)
    for number, (base, size) in enumerate(sources):
        rows = each if number else count - len(rendered) - each * (len(sources) - 1)
        source = perturbed(base, size, generator)
        for start in range(0, rows, CHUNK):
            prompts = [str(caption) for caption in draw_captions(min(CHUNK, rows - start), generator)]
            parts.append(source(draw_noise(len(prompts), generator), prompts))
    return torch.cat(parts)


def perturbed(model: SanaSprint, size: float, generator: torch.Generator) -> SanaSprint:
    """A copy whose linear weights carry noise of ``size`` times their own rms."""
    other = copy.deepcopy(model)
    for layer in other.transformer.modules() if size else ():
        if isinstance(layer, nn.Linear):
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data.add_(noise * (size * layer.weight.detach().square().mean().sqrt()))
    return other


def decoded(model: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Scaled latents to images in [0, 1], in the way of ``backend.decoder``."""
    return model.decode(latents).sample / 2 + 0.5


@torch.no_grad()
def evaluate(model: AutoencoderTiny, latents: Tensor, real: Tensor) -> dict[str, float]:
    """PSNR in dB against the real decoder's images."""
    error = (decoded(model, latents).clamp(0, 1) - real).square().mean((1, 2, 3))
    return {"psnr_db": round((-10 * error.log10()).mean().item(), 2)}


def run(work: Path, bases: list[SanaSprint], autoencoder: Any, recipe: Recipe = RECIPE) -> AutoencoderTiny:
    """Train the decoder, or load the trained one: mean squared and absolute distance to the real decoder's images."""
    torch.manual_seed(recipe.seed)
    model = build()
    model.encoder.requires_grad_(False)
    generator = generator_for("tiny-decoder-pool")
    latents = draw_latents(bases, autoencoder, POOL + HELD_OUT, generator)
    latents = latents[torch.randperm(len(latents), generator=generator)]
    with torch.no_grad():
        real = torch.cat([decode_with(autoencoder, part) for part in latents.split(CHUNK)])

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(POOL, (recipe.batch,), generator=generator)
        error = decoded(model, latents[rows]) - real[rows]
        return 4 * error.square().mean() + 0.2 * error.abs().mean()

    stage = Stage("tiny-decoder", work, model, loss, evaluate=lambda: evaluate(model, latents[POOL:], real[POOL:]))
    train(stage, recipe)
    return model.eval().requires_grad_(False)
