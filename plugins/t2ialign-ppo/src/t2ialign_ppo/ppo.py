"""PPO (arXiv 1707.06347) for a one-step bandit: an action is a whole table, its reward that of the image it draws."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from t2ialign_ppo.distributions import Draws, TableDistribution
from t2ialign_ppo.policy import Policy


class Loss(NamedTuple):
    """The loss and its parts, all scalars.

    Attributes:
        total: what is minimised.
        policy: the clipped surrogate.
        kl: KL to the start distribution, summed over intervals.
        entropy: of the policy, summed over intervals.
        ratio: mean probability ratio.
        clipped: fraction of samples whose ratio lies outside the clip range.
    """

    total: Tensor
    policy: Tensor
    kl: Tensor
    entropy: Tensor
    ratio: Tensor
    clipped: Tensor


def loss(
    policy: TableDistribution,
    start: TableDistribution,
    draws: Draws,
    old_log_prob: Tensor,
    advantages: Tensor,
    clip: float,
    kl_weight: float,
    entropy_weight: float,
) -> Loss:
    """mean max(-A rho, -A clip(rho)) + kl_weight KL(policy, start) - entropy_weight H.

    Args:
        draws: B tables.
        old_log_prob: their log-density under the policy that drew them (B,), summed over intervals.
        advantages: (B,).
    """
    ratio = torch.exp(policy.log_prob(draws).sum(-1) - old_log_prob)
    inside = ratio.clamp(1 - clip, 1 + clip)
    surrogate = torch.maximum(-advantages * ratio, -advantages * inside).mean()
    kl, entropy = policy.kl(start).sum(), policy.entropy().sum()
    total = surrogate + kl_weight * kl - entropy_weight * entropy
    return Loss(total, surrogate, kl, entropy, ratio.mean(), (ratio != inside).double().mean())


def update(policy: Policy, solver: torch.optim.Optimizer, step_loss: Loss, max_grad_norm: float) -> Tensor:
    """One solver step; returns the gradient norm before clipping."""
    solver.zero_grad()
    step_loss.total.backward()
    norm = nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
    solver.step()
    return norm
