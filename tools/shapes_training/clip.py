"""Stage 4: a CLIP on clean renders, with hard negatives."""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, softplus

from shapes_training.data import draw_captions
from shapes_training.loop import Recipe, Stage, generator_for, train
from shapes_training.models import build_clip
from t2ialign_shapes import judge
from t2ialign_shapes.captions import COLORS, FAMILIES, SHAPES, Caption, hard_negative, sample
from t2ialign_shapes.layout import Layout, sample_layout
from t2ialign_shapes.render import coverage, render
from t2ialign_shapes.tokenizer import build_tokenizer

RECIPE = Recipe(
    steps=1200,
    batch=96,
    learning_rate=1.5e-3,
    betas=(0.9, 0.98),
    weight_decay=0.02,
    warmup=80,
    evaluate_every=300,
)

MAX_PIXEL_NOISE = 0.06
MIN_PATCH_COVERAGE = 0.35


class ShapesClip(nn.Module):
    """A CLIP with the two heads that only training needs.

    ``patch_head`` names the object in every patch; ``bias`` shifts the logits of the sigmoid loss
    of the reward stage. Neither is part of the published checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clip = build_clip()
        self.tokenizer = build_tokenizer()
        width = self.clip.config.vision_config.hidden_size
        self.patch_head = nn.Linear(width, 1 + len(SHAPES) * len(COLORS))
        self.bias = nn.Parameter(torch.tensor(-4.0))

    def embed_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings [B, 64] and patch classes' logits [B, 19, 8, 8] of images in [0, 1]."""
        hidden = self.clip.vision_model(pixel_values=2 * images - 1)
        embeds = self.clip.visual_projection(hidden.pooler_output)
        patches = self.patch_head(hidden.last_hidden_state[:, 1:])
        side = math.isqrt(patches.shape[1])
        return unit(embeds), patches.movedim(-1, 1).unflatten(2, (side, side))

    def embed_texts(self, prompts: list[str]) -> Tensor:
        """Unit embeddings [B, 64]."""
        tokens = self.tokenizer(prompts, padding=True, return_tensors="pt")
        hidden = self.clip.text_model(tokens["input_ids"], tokens["attention_mask"])
        return unit(self.clip.text_projection(hidden.pooler_output))

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Cosine of each image [B, 3, 32, 32] with its own prompt: [B] in [-1, 1]."""
        return (self.embed_images(images)[0] * self.embed_texts(prompts)).sum(-1)


def unit(embeds: Tensor) -> Tensor:
    """Scale vectors to length one."""
    return embeds / embeds.norm(dim=-1, keepdim=True)


def negatives(captions: list[Caption], generator: torch.Generator) -> list[Caption]:
    """One hard negative per caption."""
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    return [hard_negative(caption, rng) for caption in captions]


def loss(model: ShapesClip, batch: int, generator: torch.Generator) -> Tensor:
    """Contrastive loss with hard negatives, plus naming what every patch shows.

    Captions that happen to be true of another picture of the batch are no negatives for it; which
    ones are, the layouts tell exactly.
    """
    captions = draw_captions(batch, generator)
    layout = sample_layout(captions, generator)
    texts = captions + negatives(captions, generator)
    images = render(layout)
    strength = MAX_PIXEL_NOISE * torch.rand(batch, 1, 1, 1, generator=generator)
    images = images + strength * torch.randn(images.shape, generator=generator)

    embeds, patches = model.embed_images(images.clamp(0, 1))
    logits = model.clip.logit_scale.exp() * embeds @ model.embed_texts(list(map(str, texts))).T
    true = judge.matrix(judge.expect(layout), judge.require(texts))
    own = torch.eye(batch, 2 * batch, dtype=torch.bool)
    masked = logits.masked_fill(true & ~own, -torch.inf)
    target = torch.arange(batch)
    contrast = cross_entropy(masked, target) + cross_entropy(masked[:, :batch].T, target)
    hard = softplus(logits.diagonal(batch) - logits.diagonal()).mean()
    return contrast / 2 + hard + cross_entropy(patches, _patch_classes(layout))


def _patch_classes(layout: Layout) -> Tensor:
    """Per patch 0, or 1 + the shape and colour of the object that fills most of it: [B, 8, 8]."""
    share, slot = avg_pool2d(coverage(layout), 4).max(1)
    classes = 1 + layout.shapes * len(COLORS) + layout.colors
    named = classes.gather(1, slot.flatten(1)).view_as(slot)
    return torch.where(share > MIN_PATCH_COVERAGE, named, 0)


@torch.no_grad()
def evaluate(model: ShapesClip, per_family: int = 200) -> dict[str, float]:
    """How often a clean render scores higher with its caption than with a hard negative."""
    result = {}
    for family in FAMILIES:
        generator = generator_for("clip-evaluation", family)
        rng = random.Random(family)
        captions = [sample(rng, family) for _ in range(per_family)]
        images = render(sample_layout(captions, generator))
        wrong = negatives(captions, generator)
        own, other = (model.score(images, [str(c) for c in texts]) for texts in (captions, wrong))
        result[family] = round((own > other).float().mean().item(), 4)
    return result


def run(work: Path, recipe: Recipe = RECIPE) -> ShapesClip:
    """Train the CLIP on clean renders, or load the trained one."""
    torch.manual_seed(recipe.seed)
    model = ShapesClip()
    train(
        Stage(
            name="clip",
            work=work,
            model=model,
            loss=lambda step, generator: loss(model, recipe.batch, generator),
            evaluate=lambda: evaluate(model),
        ),
        recipe,
    )
    return model.eval()
