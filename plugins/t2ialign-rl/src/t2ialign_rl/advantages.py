"""How much better an image is than the others of its prompt; and the clipped policy loss on it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: Added to every standard deviation, as in the published codes.
FLOOR = 1e-4


def advantages(rewards: Tensor, groups: Tensor, std: Literal["batch", "prompt"] = "batch") -> Tensor:
    """(r - mean of its group) / (std + 1e-4), in float64: float32's rounding of a mean is no reason to learn.

    Images alone in their group and groups without spread have 0. Rewards that are not finite have 0, too, and count
    in no mean and no deviation.

    Args:
        rewards: (N,).
        groups: the prompt of each, as integers (N,).
        std: population standard deviation of all rewards, or of each group.
    """
    values, member = rewards.double(), groups.unique(return_inverse=True)[1]
    result = torch.zeros_like(values)
    finite = values.isfinite()
    everyone = values[finite].std(correction=0) if finite.any() else values.sum()
    for group in range(int(member.max()) + 1 if len(member) else 0):
        rows = finite & (member == group)
        own = values[rows]
        if len(own) > 1 and bool(own.max() > own.min()):
            result[rows] = (own - own.mean()) / ((everyone if std == "batch" else own.std(correction=0)) + FLOOR)
    return result


def clipped(advantages: Tensor, limit: float) -> Tensor:
    """Within +-limit (n,)."""
    return advantages.clamp(-limit, limit)


def clipped_loss(advantages: Tensor, ratio: Tensor, clip: float) -> Tensor:
    """max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip)) (n,): PPO's pessimistic bound (arXiv 1707.06347, eq. 7)."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
