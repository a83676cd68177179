"""Fitness shaping: from the scores of a population to the weights of its perturbations.

Scores are (N, M): N members on M prompts, higher is better. A row of NaN marks a member that is left out; shaped
fitness (N,) is NaN for every member that takes no part. All members see the same prompts and noise, so anything
that is the same for all members of a prompt cancels in the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign.problem.advantages import centred, centred_ranks, standardised, variance


@dataclass(frozen=True)
class Fitness:
    """Shaped fitness.

    Attributes:
        values: (N,), 0 for members that take no part.
        used: bool (N,), the members that take part.
        constant: bool scalar: nothing distinguishes the members, so there is no update.
    """

    values: Tensor
    used: Tensor
    constant: Tensor


def shape(samples: Tensor, kind: str, *, group_size: int = 0, floor: float = 1e-3) -> Fitness:
    """Shape the scores of one generation.

    A missing sample (NaN or infinite) is replaced by the other members' mean on the same prompt and image, which
    favours nobody; a member without any finite sample is left out.

    Args:
        samples: (N,), (N, prompts) or (N, prompts, images).
        kind: a key of ``SHAPINGS``.
        group_size: members per group of the two group forms, which compare only neighbours.
        floor: smallest divisor of the antithetic form.

    Raises:
        ValueError: fewer than two members, or a population that groups do not divide.
    """
    count = len(samples)
    if count < 2:
        raise ValueError("a population needs at least 2 members: one member has nothing to be compared with")
    if kind in GROUPED and (group_size < 2 or count % group_size):
        raise ValueError(f"shaping '{kind}' needs a group_size of 2 or more that divides the population of {count}")
    scores = prompt_scores(samples)
    size = (
        torch.where(samples.isfinite(), samples.abs(), 0.0).reshape(count, *samples.shape[1:2] or (1,), -1).amax((0, 2))
    )
    raw = SHAPINGS[kind](scores, size, group_size=group_size, floor=floor)
    used = ~raw.isnan()
    values = raw.nan_to_num(0.0)
    return Fitness(values, used, (values == 0).all())


def prompt_scores(samples: Tensor) -> Tensor:
    """Mean over images, (N, M), missing samples filled in; members without a finite sample are rows of NaN.

    Scores are relative to the first member's: an offset common to all cancels later, and equal scores become exact
    zeros, which a mean over members would miss by a rounding error.
    """
    samples = samples.reshape(len(samples), 1) if samples.ndim == 1 else samples
    finite = samples.isfinite()
    known = torch.where(finite, samples, torch.nan)
    filled = torch.where(finite, samples, known.nanmean(0))
    alive = finite.flatten(1).any(1)
    if filled.ndim == 3:
        filled = filled.nanmean(2)
    # A prompt on which nobody was scored says nothing about anybody.
    filled = filled.nan_to_num(0.0)
    return torch.where(alive[:, None], filled - filled[alive.int().argmax()], torch.nan)


def zscore(scores: Tensor, size: Tensor, **_: float) -> Tensor:
    """(s - mean) / std of the members' means, unbiased std."""
    return standardised(scores.mean(1), 0, size.mean(), correction=1, eps=1e-8)


def centred_scores(scores: Tensor, size: Tensor, **_: float) -> Tensor:
    """s - mean of the members' means: the fitness itself, whose size decides that of the step."""
    return centred(scores.mean(1), 0, size.mean())


def zscore_biased(scores: Tensor, size: Tensor, **_: float) -> Tensor:
    """(s - mean) / sqrt(var + 1e-5) with the population variance: the form of the authors' JAX code."""
    s = scores.mean(1)
    return centred(s, 0, size.mean()) / (variance(s) + 1e-5).sqrt()


def group_centred(scores: Tensor, size: Tensor, *, group_size: int, **_: float) -> Tensor:
    """Centred on the own group's mean, divided by the spread of all members (authors' JAX code)."""
    s = scores.mean(1)
    return centred(s.view(-1, int(group_size)), 1, size.mean()).flatten() / (variance(s) + 1e-5).sqrt()


def group_zscore(scores: Tensor, size: Tensor, *, group_size: int, **_: float) -> Tensor:
    """Standardised by the own group's mean and unbiased std (the form of eggroll-trainer)."""
    groups = scores.mean(1).view(-1, int(group_size))
    return standardised(groups, 1, size.mean(), correction=1, eps=1e-8).flatten()


def prompt_centred(scores: Tensor, size: Tensor, **_: float) -> Tensor:
    """Mean over prompts of (S - prompt mean) / rms of all residuals.

    A z-score would undo the division (upstream's ``promptnorm`` does); kept as it is, steps shrink when the prompts
    disagree about who is better.
    """
    residual = centred(scores, 0, size)
    return (residual / residual.square().nanmean().sqrt().clamp(min=1e-8)).mean(1)


def prompt_zscore(scores: Tensor, size: Tensor, **_: float) -> Tensor:
    """Every prompt standardised by its own spread, averaged, standardised again: all prompts weigh the same.

    A prompt on which the members do not differ counts 0.
    """
    return standardised(standardised(scores, 0, size, correction=1, eps=1e-8).mean(1), correction=1, eps=1e-8)


def centred_rank(scores: Tensor, size: Tensor, **_: float) -> Tensor:
    """rank / (N - 1) - 0.5 of the members' means, in [-0.5, 0.5]; ties share their mean rank."""
    return centred_ranks(scores.mean(1), size.mean())


def nes(scores: Tensor, size: Tensor, **_: float) -> Tensor:
    """Utilities of natural evolution strategies: u = max(0, ln(n/2 + 1) - ln(n - r)) of rank r, worst 0, over their
    sum, minus 1/n; ties share the mean of their utilities. Only the better half has different ones."""
    means = scores.mean(1)
    ranks = centred_ranks(means, size.mean())
    alive = ~means.isnan()
    n = int(alive.sum())
    if n < 2 or not bool((ranks.nan_to_num() != 0).any()):
        return 0 * means
    order = torch.arange(n, device=means.device).to(means)
    u = (math.log(n / 2 + 1) - (n - order).log()).clamp(min=0)
    u = u / u.sum() - 1 / n
    ordered = means[alive].sort().values
    first = torch.searchsorted(ordered, means[alive], side="left")
    last = torch.searchsorted(ordered, means[alive], side="right")
    sums = torch.cat([u.new_zeros(1), u.cumsum(0)])
    values = means.clone()
    values[alive] = (sums[last] - sums[first]) / (last - first)
    return values


def antithetic(scores: Tensor, size: Tensor, *, floor: float, **_: float) -> Tensor:
    """f(+E_p) = d_p / max(rms_p d, floor) and f(-E_p) = -f(+E_p), d_p = mean score of +E_p minus that of -E_p.

    The floor keeps the step small when the differences are nothing but noise.
    """
    d = _differences(scores, size).mean(1)
    return _mirrored(d / d.square().nanmean().sqrt().clamp(min=floor), len(scores))


def antithetic_sign(scores: Tensor, size: Tensor, **_: float) -> Tensor:
    """f(+E_p) = mean over prompts of sign(S(+E_p) - S(-E_p)): blind to the size of differences."""
    difference = _differences(scores, size)
    sign = torch.where(difference.isnan(), difference, difference.sign())  # torch's sign of NaN is 0
    return _mirrored(sign.mean(1), len(scores))


def _differences(scores: Tensor, size: Tensor) -> Tensor:
    """(P, M), S(+E_p) - S(-E_p), twice what centres the pair; the unpaired last member of an odd population is out."""
    pairs = scores[: len(scores) // 2 * 2].unflatten(0, (-1, 2))
    missing = pairs.isnan().any(1)
    return torch.where(missing, torch.nan, 2 * centred(pairs, 1, size)[:, 0])


def _mirrored(values: Tensor, count: int) -> Tensor:
    """(N,) from one value per pair; NaN for an unpaired last member."""
    fitness = values.new_full((count,), torch.nan)
    fitness[: 2 * len(values)] = torch.stack([values, -values], 1).flatten()
    return fitness


SHAPINGS: dict[str, Callable[..., Tensor]] = {
    "zscore": zscore,
    "centred": centred_scores,
    "zscore-biased": zscore_biased,
    "group-centred": group_centred,
    "group-zscore": group_zscore,
    "prompt-centred": prompt_centred,
    "prompt-zscore": prompt_zscore,
    "centred-rank": centred_rank,
    "nes": nes,
    "antithetic": antithetic,
    "antithetic-sign": antithetic_sign,
}
GROUPED = ("group-centred", "group-zscore")
PAIRED = ("antithetic", "antithetic-sign")
