"""Training pictures: random captions, their layouts, and the coupling of noise to layouts."""

from __future__ import annotations

import random
from functools import cache

import torch
from torch import Tensor

from shapes_training.loop import generator_for
from shapes_training.models import LATENT_CHANNELS, LATENT_SIZE
from t2ialign_shapes.captions import COLORS, SHAPES, Caption, sample
from t2ialign_shapes.layout import (
    CANONICAL_COLOR,
    RADIUS_RANGE,
    Layout,
    describe,
    group_by_placement,
    sample_centers,
)
from t2ialign_shapes.world import SIZE

LIBRARY_SIZE = 768
BUMP_WIDTH = 5.0
"""Standard deviation, in pixels, of the neighbourhood over which noise votes for a place."""

SIZE_AND_BACKGROUND_CHANNEL = {8: (4, 7), 4: (2, 3)}
"""Noise channels that decide size and background, by the number of channels that there are."""

FADE_CHANNEL = 5
COUPLED_SINGLE_RADIUS = (6.5, 8.0)

FADE_RANGE = (0.35, 0.95)
"""Contrast of washed-out objects; the exact detector sees an object from about 0.72 on."""


def draw_captions(count: int, generator: torch.Generator, family: str | None = None) -> list[Caption]:
    """Draw captions of one family, or with the family weights of the package."""
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    return [sample(rng, family) for _ in range(count)]


def draw_noise(count: int, generator: torch.Generator, channels: int = LATENT_CHANNELS) -> Tensor:
    """Unit Gaussian latents [count, channels, 8, 8]."""
    return torch.randn(count, channels, LATENT_SIZE, LATENT_SIZE, generator=generator)


def canonical_colors(captions: list[Caption]) -> Tensor:
    """Colours of a layout for each caption, those left open canonical: int64 [B, MAX_OBJECTS].

    With random colours there, what a caption leaves open would hide for long what it does say.
    """
    layout = describe(captions)
    canonical = torch.tensor([COLORS.index(CANONICAL_COLOR[shape]) for shape in SHAPES])
    return torch.where(layout.colors < 0, canonical[layout.shapes], layout.colors)


def couple(captions: list[Caption], noise: Tensor, fade: bool = False) -> Layout:
    """Choose the one layout that belongs to each (noise, caption).

    A one-step generator can only learn a function, so everything that a caption leaves open is
    decided by the noise, in a way that is local and smooth enough to be learned by regression:
    an object lies where its noise channel is largest over a neighbourhood, among the layouts of a
    fixed library; size and background follow the mean of a channel. Colours left open are
    canonical.

    Args:
        noise: float32 [B, 8, 8, 8] or [B, 4, 8, 8].
        fade: paint objects with a contrast in `FADE_RANGE`, decided by the noise too. This is the
            removable defect of the washed-out base.
    """
    layout = describe(captions)
    layout.colors = canonical_colors(captions)
    size_channel, background_channel = SIZE_AND_BACKGROUND_CHANNEL[noise.shape[1]]
    mean = noise.mean((2, 3)) * LATENT_SIZE  # [B, C], each unit Gaussian
    layout.background = torch.where(layout.background < 0, (mean[:, background_channel] > 0).long(), layout.background)
    quantile = torch.special.ndtr(mean[:, size_channel])
    counting = torch.tensor([caption.things[0].count > 1 for caption in captions])
    for (n, relation), rows in group_by_placement(captions).items():
        low, high = _coupled_radius(n)
        layout.radii[rows, :n] = low + (high - low) * quantile[rows, None]
        # Equal objects share channel 0; different ones listen to a channel each.
        fields = noise[rows].flatten(2)[:, :n]
        fields = torch.where(counting[rows, None, None], fields[:, :1], fields)
        centers, bumps = _library(n, relation)
        votes = torch.einsum("bnc,mnc->bm", fields, bumps)
        layout.centers[rows, :n] = centers[votes.argmax(1)]
    if fade:
        low, high = FADE_RANGE
        layout.contrast = low + (high - low) * torch.special.ndtr(mean[:, FADE_CHANNEL])
    return layout


def _coupled_radius(n: int) -> tuple[float, float]:
    return COUPLED_SINGLE_RADIUS if n == 1 else RADIUS_RANGE[n]


@cache
def _library(n: int, relation: str | None) -> tuple[Tensor, Tensor]:
    """Fixed layouts and how noise votes for them.

    Returns:
        centers: float32 [LIBRARY_SIZE, n, 2] in pixels, valid even at the largest radius.
        bumps: float32 [LIBRARY_SIZE, n, 64], a Gaussian over the latent cells around each centre,
            with zero mean and unit norm, so that no place is preferred on average.
    """
    radii = torch.full((LIBRARY_SIZE, n), _coupled_radius(n)[1])
    centers = sample_centers(radii, relation, generator_for("library", n, relation))
    cell = SIZE / LATENT_SIZE
    axis = (torch.arange(LATENT_SIZE) + 0.5) * cell
    x, y = centers[..., None].unbind(-2)  # [LIBRARY_SIZE, n, 1] each
    across = torch.exp(-((x - axis) ** 2) / (2 * BUMP_WIDTH**2))
    down = torch.exp(-((y - axis) ** 2) / (2 * BUMP_WIDTH**2))
    bumps = (down[..., :, None] * across[..., None, :]).flatten(-2)
    bumps = bumps - bumps.mean(-1, keepdim=True)
    return centers, bumps / bumps.norm(dim=-1, keepdim=True)
