"""What ReNO climbs (arXiv 2406.04312): J(z) = R(G(z)) - lambda K(z), with K(z) = |z|^2 / 2 - (d - 1) ln |z|.

K is the negative log-density of the norm of a standard Gaussian in d dimensions (a chi distribution), without its
constant: it keeps |z| where the generator has seen it. Everything is per sample; rows never mix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from t2ialign.problem.mix import RewardMix


def norms(latents: Tensor) -> Tensor:
    """L2 norm of every sample: (B, ...) to (B,), float32."""
    return latents.float().flatten(1).norm(dim=1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) values shaped to broadcast over ``like`` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def noise_penalty(latents: Tensor) -> Tensor:
    """K(z) above its minimum, which lies at |z| = sqrt(d - 1): (B, ...) to (B,), float32.

    The minimum itself is about -71,000 for 16,384 numbers; in float32 the differences that matter would drown in it.
    """
    mode = latents[0].numel() - 1
    squares = norms(latents).square()
    return (squares - mode) / 2 - mode / 2 * torch.log(squares / mode)


def noise_penalty_gradient(latents: Tensor) -> Tensor:
    """Gradient of K: (1 - (d - 1) / |z|^2) z, the shape of ``latents``."""
    mode = latents[0].numel() - 1
    return per_sample(1 - mode / norms(latents).square(), latents) * latents


def minimum_penalty(size: int) -> float:
    """K at its minimum for latents of ``size`` numbers: add it to ``noise_penalty`` for the absolute K."""
    return (size - 1) / 2 * (1 - math.log(size - 1))


class RewardGradient(NamedTuple):
    """Raw scores by reward (B,), their weighted sum (B,), its gradient in the noise (B, ...), images (B, 3, H, W)."""

    raw: dict[str, Tensor]
    total: Tensor
    gradient: Tensor
    images: Tensor


def reward_gradient(
    render: Callable[[Tensor], Tensor], rewards: Sequence[RewardMix], latents: Tensor, prompts: Sequence[str]
) -> RewardGradient:
    """Back-propagate rewards to the noise, one reward at a time.

    Each reward's graph is freed before the next one's is built; their gradients add up in the image, which then goes
    through the generator once. The peak is the generator and the largest reward, however many rewards there are.

    Args:
        render: noise (B, ...) to images (B, 3, H, W) in [0, 1], differentiable.
        rewards: mixes of one reward each.
        latents: initial noise, float32 (B, ...).
        prompts: B texts.
    """
    with torch.enable_grad():
        latents = latents.detach().requires_grad_()
        images = render(latents)
        pixels = images.detach().requires_grad_()
        raw: dict[str, Tensor] = {}
        total = torch.zeros(len(latents), device=latents.device)
        for reward in rewards:
            scores = reward.score(pixels, prompts)
            term = reward.combine(scores)
            term.sum().backward()
            raw |= {name: values.detach() for name, values in scores.items()}
            total = total + term.detach().to(total.device)
        images.backward(pixels.grad)
    assert latents.grad is not None
    return RewardGradient(raw, total, latents.grad, pixels.detach())
