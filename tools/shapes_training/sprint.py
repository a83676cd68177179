"""Stages 2 and 3: the one-step generator, and its washed-out continuation.

There is no teacher. The renderer itself gives a deterministic map from (noise, caption) to a
picture, and the generator regresses that map in latent space.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from shapes_training.autoencoder import encode
from shapes_training.benchmark import score_generator
from shapes_training.data import couple, draw_captions, draw_noise
from shapes_training.loop import Recipe, Stage, train
from shapes_training.models import SanaSprint
from shapes_training.workdir import read_tensors
from t2ialign_shapes.layout import Layout
from t2ialign_shapes.render import render

RECIPE = Recipe(
    steps=4200,
    horizon=10_000,
    batch=64,
    learning_rate=2e-3,
    warmup=100,
    ema=0.998,
    evaluate_every=600,
)
"""Stops on purpose before the model is as good as it can get: alignment needs mistakes to mend."""

WASHED_RECIPE = Recipe(steps=500, batch=64, learning_rate=1e-3, warmup=40, ema=0.98, evaluate_every=125)

OBJECT_WEIGHT = 4.0
"""Weight of latent cells that differ from the empty background, which fills most of a picture."""


def draw_pairs(
    autoencoder: AutoencoderDC, batch: int, fade: bool, generator: torch.Generator
) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Draw prompts, noise, the latents that belong to them, and a weight per latent cell."""
    captions = draw_captions(batch, generator)
    noise = draw_noise(batch, generator)
    layout = couple(captions, noise, fade)
    with torch.no_grad():
        target = encode(autoencoder, render(layout))
        empty = encode(autoencoder, render(_empty_layouts()))[layout.background]
    differs = (target - empty).abs().amax(1, keepdim=True) > 0.1
    weight = torch.where(differs, OBJECT_WEIGHT, 1.0)
    return [str(caption) for caption in captions], noise, target, weight


def weighted_error(latents: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error of latents [B, C, 8, 8], averaged with a weight per cell [B, 1, 8, 8].

    Plain squared error on purpose: robust losses settle on the median, which is an empty picture.
    """
    error = (latents - target).square().mean(1, keepdim=True)
    return (error * weight).sum() / weight.sum()


def _empty_layouts() -> Layout:
    """A black and a white picture without objects."""
    captions = draw_captions(2, torch.Generator().manual_seed(0))
    layout = couple(captions, torch.zeros(2, 8, 8, 8))
    return replace(layout, count=torch.zeros(2, dtype=torch.long), background=torch.arange(2))


def run(work: Path, autoencoder: AutoencoderDC, recipe: Recipe = RECIPE) -> SanaSprint:
    """Train the clean generator, or load the trained one."""
    torch.manual_seed(recipe.seed)
    return _train("sprint", work, SanaSprint(), autoencoder, fade=False, recipe=recipe)


def run_washed(work: Path, autoencoder: AutoencoderDC, recipe: Recipe = WASHED_RECIPE) -> SanaSprint:
    """Continue the clean generator on faded pictures, or load the trained one."""
    model = SanaSprint()
    model.load_state_dict(read_tensors(work / "sprint" / "final.safetensors"))
    return _train("sprint-washed", work, model, autoencoder, fade=True, recipe=recipe)


def _train(
    name: str,
    work: Path,
    model: SanaSprint,
    autoencoder: AutoencoderDC,
    fade: bool,
    recipe: Recipe,
) -> SanaSprint:
    def loss(step: int, generator: torch.Generator) -> Tensor:
        prompts, noise, target, weight = draw_pairs(autoencoder, recipe.batch, fade, generator)
        return weighted_error(model(noise, prompts), target, weight)

    def evaluate() -> dict:
        return score_generator(model, autoencoder, per_family=40)

    train(Stage(name, work, model, loss, evaluate), recipe)
    return model.eval().requires_grad_(False)
