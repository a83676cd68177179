"""A small decoder beside that of the Sana Sprint checkpoints, distilled from it: for drawing while searching.

It is an AutoencoderTiny of diffusers. Its encoder is not trained, for nothing calls it. Needs the shipped checkpoints.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPModel

from shapes_training.autoencoder import LATENT_NOISE, draw_images, encode
from shapes_training.autoencoder import decode as decode_with
from shapes_training.benchmark import CHUNK, balanced_captions
from shapes_training.clip import ShapesClip
from shapes_training.data import draw_captions, draw_noise
from shapes_training.loop import Recipe, Stage, generator_for, train
from shapes_training.models import LATENT_CHANNELS, SanaSprint, count_parameters, halve
from shapes_training.package import environment, load_base, training
from shapes_training.workdir import write_json, write_text
from t2ialign_shapes import detector

RECIPE = Recipe(
    steps=1800, batch=64, learning_rate=3e-3, weight_decay=1e-4, warmup=50, save_every=100, evaluate_every=600, ema=0.99
)
WIDTH, BLOCKS = 12, (2, 1, 0)
BASES = ("sprint", "sprint-washed")
PERTURBED = (0.02, 0.05, 0.1, 0.15)
"""Relative sizes of noise on the generators' weights, for what a search draws is not what the base draws."""
POOL, HELD_OUT = 6144, 512
PER_FAMILY = 120


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


@torch.no_grad()
def agreement(model: AutoencoderTiny, base: SanaSprint, autoencoder: Any, clip: ShapesClip) -> dict[str, float]:
    """How far rewards of its images are those of the real decoder's, on a generator's own latents."""
    captions = balanced_captions(PER_FAMILY)
    prompts = [str(caption) for caption in captions]
    latents = generate_latents(base, prompts, draw_noise(len(prompts), generator_for("tiny-decoder-agreement")))
    pictures = [decode_with(autoencoder, latents), decoded(model, latents).clamp(0, 1)]
    right = torch.stack([detector.check(images, captions) for images in pictures])
    graded = torch.stack([detector.graded(images, captions) for images in pictures])
    learned = torch.stack([clip.score(images, prompts) for images in pictures])
    return {
        "n": len(prompts),
        "psnr_db": evaluate(model, latents, pictures[0])["psnr_db"],
        "correlation_clip": round(learned.corrcoef()[0, 1].item(), 3),
        "correlation_graded": round(graded.corrcoef()[0, 1].item(), 3),
        "same_verdict": round((right[0] == right[1]).float().mean().item(), 4),
        "accuracy_real": round(right[0].float().mean().item(), 4),
        "accuracy": round(right[1].float().mean().item(), 4),
    }


def generate_latents(base: SanaSprint, prompts: list[str], noise: Tensor) -> Tensor:
    """Scaled latents, in chunks."""
    starts = range(0, len(prompts), CHUNK)
    return torch.cat([base(noise[i : i + CHUNK], prompts[i : i + CHUNK]) for i in starts])


@torch.no_grad()
def milliseconds(decode: Callable[[Tensor], object], rounds: int = 9) -> float:
    """CPU time of one image in a batch of 64, the best of some rounds."""
    latents, best = torch.randn(CHUNK, LATENT_CHANNELS, 8, 8, generator=generator_for("timing")), float("inf")
    for _ in range(rounds):
        start = time.process_time()
        decode(latents)
        best = min(best, time.process_time() - start)
    return round(1000 * best / CHUNK, 2)


def write_package(work: Path, package: Path) -> None:
    """Train on the shipped checkpoints, and write ``checkpoints/tiny-decoder`` with what it measures as shipped."""
    checkpoints = package / "src" / "t2ialign_shapes" / "checkpoints"
    loaded = {name: load_base(checkpoints / name) for name in BASES}
    bases, autoencoder = [base for base, _ in loaded.values()], loaded[BASES[0]][1]
    folder = checkpoints / "tiny-decoder"
    run(work, bases, autoencoder).save_pretrained(folder)
    halve(folder)
    shipped = AutoencoderTiny.from_pretrained(folder).eval()
    clip = ShapesClip()
    clip.clip = CLIPModel.from_pretrained(checkpoints / "clip")
    clip.eval()
    figures = {
        "agreement": {
            name: agreement(shipped, base, autoencoder, clip) for name, base in zip(BASES, bases, strict=True)
        },
        "parameters": {
            "decoder": count_parameters(shipped.decoder),
            "real_decoder": count_parameters(autoencoder.decoder),
        },
        "milliseconds": {
            "decoder": milliseconds(lambda z: shipped.decode(z)),
            "real_decoder": milliseconds(lambda z: autoencoder.decode(z)),
        },
        "training": training(work, "tiny-decoder", RECIPE),
        "environment": environment(),
    }
    write_json(folder / "evaluation.json", figures)
    write_text(folder / "README.md", card(figures))


def card(figures: dict[str, Any]) -> str:
    """README.md of the shipped folder."""
    rows = "\n".join(
        f"| `{name}` | {f['psnr_db']} | {f['correlation_clip']} | {f['correlation_graded']} "
        f"| {100 * f['same_verdict']:.1f} % | {100 * f['accuracy_real']:.1f} % | {100 * f['accuracy']:.1f} % |"
        for name, f in figures["agreement"].items()
    )
    n = next(iter(figures["agreement"].values()))["n"]
    parameters, time_of, made = figures["parameters"], figures["milliseconds"], figures["training"]
    versions = ", ".join(f"{name} {value}" for name, value in figures["environment"].items())
    return f"""\
---
license: apache-2.0
library_name: diffusers
---
# shapes / tiny-decoder

A small decoder for the latents of `sprint` and `sprint-washed`: what taesd is to Stable Diffusion. It draws while a run
searches; what counts is drawn with the checkpoint's own decoder. Its encoder was not trained.

```toml
[backend]
decoder = "pkg:t2ialign_shapes/checkpoints/tiny-decoder"
```

{parameters["decoder"]:,} parameters where the real decoder has {parameters["real_decoder"]:,}; {time_of["decoder"]} ms
of CPU time an image where that takes {time_of["real_decoder"]} (batch of 64, one thread, a machine with other work).

Against the real decoder, on {n} images of each base: PSNR in dB, correlation of the CLIP reward and of
`shapes-graded`, equal verdicts of `shapes-exact`, and its mean with the real decoder and with this one.

| base | PSNR | CLIP | graded | same verdict | exact, real | exact, this |
|---|---|---|---|---|---|---|
{rows}

## Training

{made["steps"]} steps of {made["batch"]} latents ({made["cpu_s"]} CPU seconds) on mean squared and absolute distance to
the real decoder's images. Latents are those of renders, of both bases, and of copies of them with noise on their
weights, which stand for what a search draws. The recipe is `tools/train_shapes.py tiny-decoder`.

Weights are stored as float16 and load as float32. Measured with {versions}.
"""


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
