"""The multi-step generator in the format of Stable Diffusion."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from shapes_training import clip
from shapes_training.autoencoder import encode
from shapes_training.benchmark import score_generator
from shapes_training.data import canonical_colors, draw_captions
from shapes_training.loop import Recipe, Stage, generator_for, train
from shapes_training.sd_models import StableDiffusion
from shapes_training.workdir import read_tensors, write_tensors
from t2ialign_shapes.layout import sample_layout
from t2ialign_shapes.render import render

RECIPE = Recipe(steps=4500, batch=64, learning_rate=1.5e-3, warmup=80, ema=0.998, evaluate_every=500)

PICTURES = 49_152
"""Size of the training set. Unlike the renderer's endless pictures, latents are dear to compute."""

CAPTION_DROPOUT = 0.1
"""Share of empty captions, which classifier-free guidance needs."""

FULL_WEIGHT_SNR = 5.0


def draw_latents(
    autoencoder: AutoencoderKL, count: int, generator: torch.Generator, family: str | None
) -> tuple[list[str], Tensor]:
    """Captions and latents [count, 4, 8, 8] of random layouts; colours left open are canonical."""
    captions = draw_captions(count, generator, family)
    layout = sample_layout(captions, generator)
    layout.colors = canonical_colors(captions)
    return [str(caption) for caption in captions], encode(autoencoder, render(layout))


@torch.no_grad()
def load_data(
    work: Path, autoencoder: AutoencoderKL, model: StableDiffusion, family: str | None = None
) -> dict[str, Tensor]:
    """A training set, made once: latents float16 [N, 4, 8, 8] and token ids uint8 [N, 16].

    Args:
        family: of all captions; None for the families' usual weights.
    """
    name = f"data-{family}" if family else "data"
    path = work / "sd" / f"{name}.safetensors"
    if not path.exists():
        tokens, latents = [], []
        for index in range(PICTURES // 256):
            prompts, batch = draw_latents(autoencoder, 256, generator_for(f"sd-{name}", index), family)
            tokens.append(model.tokenize(prompts).byte())
            latents.append(batch.half())
        write_tensors(path, {"tokens": torch.cat(tokens), "latents": torch.cat(latents)})
    return read_tensors(path)


def timestep_density(alphas_cumprod: Tensor) -> Tensor:
    """How often each timestep is drawn, summing to one: [T].

    Uniform at high noise, where the caption decides what goes where; from an SNR of
    `FULL_WEIGHT_SNR` on as 1 / (1 + SNR), where only details are left (Min-SNR, arXiv 2303.09556,
    as importance sampling in place of a weight).
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    density = ((1 + FULL_WEIGHT_SNR) / (1 + snr)).clamp(max=1)
    return density / density.sum()


def draw_timesteps(cumulative: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Stratified timesteps, int64 [count], from the cumulative density [T]."""
    quantile = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return torch.searchsorted(cumulative, quantile).clamp(max=len(cumulative) - 1)


def loss(model: StableDiffusion, tokens: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
    """Squared error of v at random timesteps, some captions emptied.

    Args:
        tokens: int64 [B, 16].
        latents: float32 [B, 4, 8, 8].
    """
    batch = len(latents)
    scheduler = model.scheduler
    cumulative = timestep_density(scheduler.alphas_cumprod).cumsum(0)
    timesteps = draw_timesteps(cumulative, batch, generator)
    noise = torch.randn(latents.shape, generator=generator)
    empty = torch.rand(batch, generator=generator) < CAPTION_DROPOUT
    tokens = torch.where(empty[:, None], model.tokenize([""]), tokens)
    prediction = model.unet(
        scheduler.add_noise(latents, noise, timesteps),
        timesteps,
        encoder_hidden_states=model.text_encoder(tokens)[0],
    ).sample
    return (prediction - scheduler.get_velocity(latents, noise, timesteps)).square().mean()


def run(work: Path, autoencoder: AutoencoderKL, recipe: Recipe = RECIPE) -> StableDiffusion:
    """Train the generator, or load the trained one.

    The text encoder starts from the text tower of the CLIP that was trained on clean renders, and
    is trained along.
    """
    torch.manual_seed(recipe.seed)
    model = StableDiffusion()
    model.text_encoder.load_state_dict(clip.run(work).clip.text_model.state_dict())
    data = load_data(work, autoencoder, model)

    def step_loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(PICTURES, (recipe.batch,), generator=generator)
        return loss(model, data["tokens"][rows].long(), data["latents"][rows].float(), generator)

    def evaluate() -> dict:
        return score_generator(model, autoencoder, per_family=40)

    train(Stage("sd", work, model, step_loss, evaluate), recipe)
    return model.eval().requires_grad_(False)
