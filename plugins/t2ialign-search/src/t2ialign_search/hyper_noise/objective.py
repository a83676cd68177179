"""HyperNoise (arXiv 2508.09968): L = E[ lambda R(Delta) - r(g(x + Delta)) ],  Delta = f(x, c).

g is the frozen one-step generator, f the same network with its LoRA. For f with a small Lipschitz constant, half the
squared norm of Delta is the Kullback-Leibler divergence of the refined noise from the noise it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from t2ialign_reno.objective import RewardGradient

Regulariser = Literal["mean", "half_sum", "norm"]


def penalty(form: Regulariser, residual: Tensor, refined: Tensor) -> Tensor:
    """R of every row (B, *latent): (B,).

    "mean" is the mean of Delta's squares, "half_sum" half their sum (D / 2 times as much), and "norm" the negative
    log-density of the refined noise's norm n, n^2 / 2 - (D - 1) log n, which does not look at Delta at all.
    """
    flat = residual.flatten(1)
    match form:
        case "mean":
            return flat.square().mean(1)
        case "half_sum":
            return flat.square().sum(1) / 2
        case "norm":
            norms = refined.flatten(1).norm(dim=1)
            return norms.square() / 2 - (flat.shape[1] - 1) * torch.log(norms + 1e-8)


def losses(
    noise: Tensor,
    residual: Callable[[Tensor], Tensor],
    reward: Callable[[Tensor], RewardGradient],
    form: Regulariser,
    weight: float,
) -> tuple[dict[str, Tensor], RewardGradient]:
    """What an update minimises, row by row; "total" has the gradient of ``weight`` R - r.

    The reward's gradient is taken at the refined noise first, through a generator without LoRA, and then handed to f:
    the two passes of one network never share a graph. A row whose reward has no finite gradient gives none.

    Args:
        noise: x (B, *latent).
        residual: f, with gradients.
        reward: the rewards of refined noise, and their gradient there.
    """
    delta = residual(noise)
    refined = noise + delta
    found = reward(refined.detach())
    fine = found.gradient.flatten(1).isfinite().all(1) & found.total.isfinite()
    gradient = torch.where(fine[:, None], found.gradient.flatten(1), 0.0)
    regular = penalty(form, delta, refined)
    values = {
        "total": weight * regular - (gradient * delta.flatten(1)).sum(1),
        "loss": weight * regular.detach() - torch.where(fine, found.total, 0.0),
        "mean_square": penalty("mean", delta.detach(), refined),
        "half_sum": penalty("half_sum", delta.detach(), refined),
    }
    return values, found


def warmed(rate: float, updates: int, warmup: int) -> float:
    """The learning rate after so many updates; the first is 0 and only fills the momentum."""
    return rate * min(1.0, updates / warmup) if warmup else rate
