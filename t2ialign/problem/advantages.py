"""Scores relative to those that they can be compared with: the one place for advantages and fitness.

A sample that nobody can be compared with gets 0, and so does every sample of a group whose spread is nothing but
rounding: such a group says nothing about who is better. NaN stands for a sample without a score and stays NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 8  # a mean of equal numbers can miss them by a few units in the last place


def constant(scores: Tensor, dim: int = -1, size: Tensor | None = None) -> Tensor:
    """Whether the spread along ``dim`` is below rounding, as it is for one score, or none. Dimension kept.

    Args:
        size: magnitude of the numbers that the scores come from, where something was subtracted since; by default
            that of the scores.
    """
    known = ~scores.isnan()
    high = torch.where(known, scores, -torch.inf).amax(dim, keepdim=True)
    low = torch.where(known, scores, torch.inf).amin(dim, keepdim=True)
    if size is None:
        size = torch.where(known, scores.abs(), 0.0).amax(dim, keepdim=True)
    return ~(high - low > ROUNDING * torch.finfo(scores.dtype).eps * size)


def centred(scores: Tensor, dim: int = -1, size: Tensor | None = None) -> Tensor:
    """Scores minus their mean along ``dim``; 0 where that is rounding."""
    return torch.where(constant(scores, dim, size), 0 * scores, scores - scores.nanmean(dim, keepdim=True))


def standardised(
    scores: Tensor, dim: int = -1, size: Tensor | None = None, *, correction: int = 0, eps: float = 0.0
) -> Tensor:
    """``centred`` scores divided by (standard deviation + ``eps``).

    Args:
        correction: 1 divides the sum of squares by n - 1.
    """
    own = centred(scores, dim, size)
    return torch.where(constant(scores, dim, size), own, own / (variance(own, dim, correction).sqrt() + eps))


def leave_one_out(scores: Tensor, dim: int = -1) -> Tensor:
    """Score minus the mean of the others along ``dim`` (RLOO, arXiv 2402.14740): n / (n - 1) times ``centred``."""
    count = (~scores.isnan()).sum(dim, keepdim=True)
    return centred(scores, dim) * count / (count - 1).clamp(min=1)


def centred_ranks(scores: Tensor, size: Tensor | None = None) -> Tensor:
    """Ranks of all numbers in [-0.5, 0.5], ties averaged."""
    flat = scores.flatten()
    valid = ~flat.isnan()
    values = flat[valid]
    result = 0 * flat
    if not bool(constant(values, 0, size) if len(values) else True):
        ordered = values.sort().values
        first = torch.searchsorted(ordered, values, side="left")
        last = torch.searchsorted(ordered, values, side="right") - 1
        result[valid] = (first + last).to(values) / 2 / (len(values) - 1) - 0.5
    return result.view_as(scores)


def variance(scores: Tensor, dim: int = -1, correction: int = 0) -> Tensor:
    """Variance of the numbers that are not NaN, dimension kept."""
    count = (~scores.isnan()).sum(dim, keepdim=True) - correction
    return (scores - scores.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True) / count.clamp(min=1)
