"""The one-step generator in the format of Stable Diffusion, as SD-Turbo is.

It is no distillation: like the Sana Sprint model it regresses the renderer's own map from (noise,
caption) to a picture, and only starts from the weights of the multi-step generator.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import max_pool2d

from shapes_training.autoencoder import encode
from shapes_training.benchmark import score_generator
from shapes_training.data import couple, draw_captions, draw_noise
from shapes_training.loop import Recipe, Stage, train
from shapes_training.models import LATENT_SIZE
from shapes_training.sd_models import SD_LATENT_CHANNELS, StableDiffusionTurbo
from shapes_training.sprint import OBJECT_WEIGHT, weighted_error
from shapes_training.workdir import read_tensors
from t2ialign_shapes.render import coverage, render
from t2ialign_shapes.world import SIZE

RECIPE = Recipe(steps=1200, horizon=1600, batch=64, learning_rate=1.5e-3, warmup=60, ema=0.998, evaluate_every=400)


@torch.no_grad()
def draw_pairs(
    autoencoder: AutoencoderKL, batch: int, generator: torch.Generator
) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Draw prompts, noise, the latents that belong to them, and a weight per latent cell."""
    captions = draw_captions(batch, generator)
    noise = draw_noise(batch, generator, SD_LATENT_CHANNELS)
    layout = couple(captions, noise)
    covered = coverage(layout).amax(1, keepdim=True)
    touched = max_pool2d(covered, SIZE // LATENT_SIZE) > 0
    weight = torch.where(touched, OBJECT_WEIGHT, 1.0)
    return [str(caption) for caption in captions], noise, encode(autoencoder, render(layout)), weight


def run(work: Path, autoencoder: AutoencoderKL, recipe: Recipe = RECIPE) -> StableDiffusionTurbo:
    """Train the generator, or load the trained one."""
    model = StableDiffusionTurbo()
    model.load_state_dict(read_tensors(work / "sd" / "final.safetensors"))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        prompts, noise, target, weight = draw_pairs(autoencoder, recipe.batch, generator)
        return weighted_error(model(noise, prompts), target, weight)

    def evaluate() -> dict:
        return score_generator(model, autoencoder, per_family=40)

    train(Stage("sd-turbo", work, model, loss, evaluate), recipe)
    return model.eval().requires_grad_(False)
