"""Online DPO for diffusion (arXiv 2311.12908): the best image of a prompt against its worst, on the same noise.

e = |v_theta(x_t) - v|^2,  f = |v_base(x_t) - v|^2        for winner and loser, with the same t and eps
z = -beta / 2 [ (e_w - f_w) - (e_l - f_l) ]
L = mean of -log sigmoid(z)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def best_against_worst(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of winners and losers (P,), by ascending group; the first of equals.

    Groups whose finite rewards have no spread give no pair.

    Args:
        rewards: (N,).
        groups: the prompt of each, as integers (N,).
    """
    win, lose = [], []
    for group in groups.unique():
        rows = ((groups == group) & rewards.isfinite()).nonzero().flatten()
        own = rewards[rows]
        if len(rows) > 1 and bool(own.max() > own.min()):
            win.append(rows[(own == own.max()).nonzero()[0, 0]])
            lose.append(rows[(own == own.min()).nonzero()[0, 0]])
    empty = groups.new_empty(0, dtype=torch.long)
    return (torch.stack(win), torch.stack(lose)) if win else (empty, empty)


def implicit_reward(error: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-beta / 2 (e - f) (n,): how much better than the base the policy denoises an image."""
    return -beta / 2 * (error - reference)


def dpo_loss(win: Tensor, lose: Tensor) -> Tensor:
    """-log sigmoid(z) (n,) of the two implicit rewards."""
    return -logsigmoid(win - lose)


def shifted_time(u: Tensor, shift: float, steps: int = 1000) -> Tensor:
    """Flow time (n,) at position floor(steps u) of the training schedule, u in [0, 1): noisy times come first."""
    even = 1 - (u * steps).floor() / steps
    return shift * even / (1 + (shift - 1) * even)
