"""What images look like, in numbers that cost next to nothing: a reward that is hacked shows in them first."""

from __future__ import annotations

import torch
from torch import Tensor

from t2ialign.evaluation.drift import DEGENERATE

DARK, BRIGHT = 0.05, 0.95
BINS = 64
SMALL = 32  # side to which images are shrunk before they are compared

STATISTICS = tuple(DEGENERATE)


@torch.no_grad()
def image_statistics(images: Tensor, per_prompt: int = 1) -> dict[str, Tensor]:
    """The statistics of images (B, 3, H, W) in [0, 1], each float32 (B,).

    dark, bright: share of pixels with luma below 0.05, above 0.95 (ITU-R BT.601 luma). saturation: mean of HSV's.
    contrast: standard deviation of luma. edges: mean square of its differences between neighbours. entropy: of its
    histogram of 64 bins, in bits. distance: mean root mean square distance to the prompt's other images, at 32 pixels;
    NaN where an image is alone.

    Args:
        per_prompt: this many neighbours belong to one prompt; divides B.
    """
    images = images.float().clamp(0, 1)
    luma = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    high, low = images.amax(1), images.amin(1)
    across, down = luma.diff(dim=2).square(), luma.diff(dim=1).square()
    values = (
        (luma < DARK).float().mean((1, 2)),
        (luma > BRIGHT).float().mean((1, 2)),
        ((high - low) / high.clamp(min=1e-6)).mean((1, 2)),
        luma.flatten(1).std(1, correction=0),
        (across.flatten(1).mean(1) + down.flatten(1).mean(1)) / 2,
        _entropy(luma),
        _distance(images, per_prompt),
    )
    return dict(zip(STATISTICS, values, strict=True))


def _entropy(luma: Tensor) -> Tensor:
    """(B,), bits."""
    bins = (luma.flatten(1) * BINS).long().clamp(max=BINS - 1)
    counts = torch.zeros(len(luma), BINS, device=luma.device).scatter_add_(1, bins, torch.ones_like(bins).float())
    return torch.special.entr(counts / bins.shape[1]).sum(1) / torch.log(torch.tensor(2.0))


def _distance(images: Tensor, per_prompt: int) -> Tensor:
    """(B,)."""
    height, width = images.shape[-2:]
    small = (
        torch.nn.functional.adaptive_avg_pool2d(images, (min(SMALL, height), min(SMALL, width)))
        .flatten(1)
        .unflatten(0, (-1, per_prompt))
    )
    between = (small[:, :, None] - small[:, None]).square().mean(3).sqrt()
    return (between.sum(2) / (per_prompt - 1 or torch.nan)).flatten()
