"""Stage 5: tune the CLIP on generator output, so that it is a reward and not only a classifier.

A CLIP that has seen nothing but clean renders ranks generated pictures hardly better than chance.
As ImageReward and PickScore do with human labels, it is tuned on pictures of the generators it is
to judge, early ones included; here the exact detector gives the labels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderDC
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from shapes_training import autoencoder as autoencoder_stage
from shapes_training import clip as clip_stage
from shapes_training.autoencoder import decode, draw_images, encode
from shapes_training.benchmark import benchmark_images, generate
from shapes_training.clip import ShapesClip, negatives
from shapes_training.data import draw_captions, draw_noise
from shapes_training.loop import Recipe, Stage, train
from shapes_training.models import SanaSprint
from shapes_training.workdir import read_tensors, write_json
from t2ialign_shapes import detector, judge
from t2ialign_shapes.captions import FAMILIES, Caption

RECIPE = Recipe(steps=500, batch=64, learning_rate=4e-4, betas=(0.9, 0.98), weight_decay=0.02, warmup=20)

SNAPSHOTS = {"sprint": (0.25, 0.5), "sprint-washed": (0.25, 0.5)}
"""Progress of the unfinished generators that supply pictures besides the final ones."""

THROUGH_AUTOENCODER = 0.7
MAX_LATENT_NOISE = 0.25

OWN_WEIGHT, HARD_WEIGHT, OTHER_WEIGHT = 3.0, 2.0, 0.1
POSITIVE_WEIGHT = 3.0
"""Weights of pairs in the loss: own prompt, own hard negative, all others; and of true pairs."""


def load_generators(work: Path) -> list[SanaSprint]:
    """Both final generators and the chosen snapshots of their training."""
    generators = []
    for stage, fractions in SNAPSHOTS.items():
        snapshots = sorted((work / stage).glob("snapshot-*.safetensors"))
        chosen = [snapshots[round(fraction * len(snapshots)) - 1] for fraction in fractions]
        for path in [*chosen, work / stage / "final.safetensors"]:
            generators.append(load_generator(path))
    return generators


def load_generator(path: Path) -> SanaSprint:
    """A frozen generator from the weights of a stage."""
    model = SanaSprint()
    model.load_state_dict(read_tensors(path))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def draw_judged(
    generators: list[SanaSprint],
    autoencoder: AutoencoderDC,
    batch: int,
    generator: torch.Generator,
) -> tuple[list[Caption], Tensor]:
    """Captions and pictures for them: half from one of the generators, half rendered.

    Most of the rendered half goes through the autoencoder with noise on its latents, which gives
    flaws of other kinds and sizes than the generators'.
    """
    captions = draw_captions(batch, generator)
    half = batch // 2
    source = int(torch.randint(len(generators), (), generator=generator))
    prompts = [str(caption) for caption in captions[:half]]
    generated = generate(generators[source], autoencoder, prompts, draw_noise(half, generator))

    rendered = draw_images(captions[half:], generator)
    latents = encode(autoencoder, rendered)
    strength = MAX_LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
    noisy = latents + strength * torch.randn(latents.shape, generator=generator)
    through = torch.rand(len(latents), 1, 1, 1, generator=generator) < THROUGH_AUTOENCODER
    rendered = torch.where(through, decode(autoencoder, noisy), rendered)
    return captions, torch.cat([generated, rendered])


def loss(model: ShapesClip, captions: list[Caption], images: Tensor, generator: torch.Generator) -> Tensor:
    """Sigmoid loss on every image-text pair: does this picture show this caption?"""
    texts = captions + negatives(captions, generator)
    true = judge.matrix(detector.detect(images), judge.require(texts)).float()
    scores = model.embed_images(images)[0] @ model.embed_texts([str(text) for text in texts]).T
    logits = model.clip.logit_scale.exp() * scores + model.bias
    weight = torch.full_like(true, OTHER_WEIGHT)
    weight.diagonal().fill_(OWN_WEIGHT)
    weight.diagonal(len(captions)).fill_(HARD_WEIGHT)
    weight = weight * torch.where(true > 0, POSITIVE_WEIGHT, 1.0)
    return binary_cross_entropy_with_logits(logits, true, weight, reduction="sum") / weight.sum()


def area_under_curve(score: Tensor, right: Tensor) -> float:
    """Probability that a right picture scores higher than a wrong one (ROC AUC); ties count half.

    Args:
        score: float [N].
        right: bool [N]; NaN is returned if all are alike.
    """
    difference = score[right][:, None] - score[~right][None]
    return ((difference > 0).float() + 0.5 * (difference == 0)).mean().item()


@torch.no_grad()
def evaluate(model: ShapesClip, generator: SanaSprint, autoencoder: AutoencoderDC, per_family: int = 120) -> dict:
    """Agreement of the score with the exact judge on a generator's pictures, other noise."""
    captions, images = benchmark_images(generator, autoencoder, per_family, seed=1)
    right, grade = detector.check(images, captions), detector.graded(images, captions)
    score = model.score(images, [str(caption) for caption in captions])
    family = [caption.family for caption in captions]
    rows = {name: torch.tensor([f == name for f in family]) for name in FAMILIES}
    return {
        "n": len(captions),
        "auc": round(area_under_curve(score, right), 4),
        "correlation_graded": round(torch.corrcoef(torch.stack([score, grade]))[0, 1].item(), 4),
        "families": {name: round(area_under_curve(score[row], right[row]), 4) for name, row in rows.items()},
    }


def run(work: Path, recipe: Recipe = RECIPE) -> ShapesClip:
    """Tune the CLIP, or load the tuned one; writes its agreement before and after as JSON."""
    torch.manual_seed(recipe.seed)
    autoencoder = autoencoder_stage.run(work)
    generators = load_generators(work)
    model = clip_stage.run(work)
    final = {name: load_generator(work / name / "final.safetensors") for name in SNAPSHOTS}

    def evaluate_all() -> dict:
        return {name: evaluate(model, source, autoencoder) for name, source in final.items()}

    before = evaluate_all()

    def step_loss(step: int, generator: torch.Generator) -> Tensor:
        captions, images = draw_judged(generators, autoencoder, recipe.batch, generator)
        return loss(model, captions, images, generator)

    train(Stage("reward", work, model, step_loss, evaluate_all), recipe)
    model.eval()
    write_json(work / "reward" / "agreement.json", {"before": before, "after": evaluate_all()})
    return model
