"""The multi-step generator, continued from the one-step generator's weights until it places objects.

Trained on v alone, the multi-step network draws the right objects long before it reads `left of`:
their places hardly change the loss. The one-step network has to read them, because its target is
one layout and no mixture of layouts. So the multi-step training goes on from there, with captions
that say a relation in half of every batch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from shapes_training.benchmark import score_generator
from shapes_training.loop import Recipe, Stage, train
from shapes_training.sd import PICTURES, load_data, loss
from shapes_training.sd_models import StableDiffusion
from shapes_training.workdir import read_tensors

RECIPE = Recipe(steps=1500, horizon=3000, batch=64, learning_rate=1e-3, warmup=80, ema=0.998, evaluate_every=500)


def run(work: Path, autoencoder: AutoencoderKL, recipe: Recipe = RECIPE) -> StableDiffusion:
    """Train the generator, or load the trained one."""
    model = StableDiffusion()
    model.load_state_dict(read_tensors(work / "sd-turbo" / "final.safetensors"))
    halves = [load_data(work, autoencoder, model, family) for family in (None, "position")]

    def step_loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(PICTURES, (2, recipe.batch // 2), generator=generator)
        tokens, latents = (
            torch.cat([half[name][part] for half, part in zip(halves, rows, strict=True)])
            for name in ("tokens", "latents")
        )
        order = torch.randperm(recipe.batch, generator=generator)  # timesteps rise with the row
        return loss(model, tokens[order].long(), latents[order].float(), generator)

    def evaluate() -> dict:
        return score_generator(model, autoencoder, per_family=40)

    train(Stage("sd-relations", work, model, step_loss, evaluate), recipe)
    return model.eval().requires_grad_(False)
