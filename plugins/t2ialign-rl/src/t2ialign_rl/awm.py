"""Advantage weighted matching, AWM (arXiv 2509.25050): the matching loss of a fresh noising stands for -log p(x0).

x0 ~ policy, any sampler;   x_t = alpha x0 + sigma eps;   m = |v_theta - (eps - x0)|^2
log p   = -m, -t m, -t^2 m, or a power of m that bounds the pull of bad images ("huber", "ghuber")
ratio   = exp(log p_theta - log p_behaviour)
L = mean of max(-A ratio, -A clamp(ratio)) + kl |v_theta - v_base|^2 + slow_kl |v_theta - v_slow|^2
slow <- d slow + (1 - d) theta,   d = min(updates / 1000, d_max)
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Weighting = Literal["uniform", "t", "t2", "huber", "ghuber"]
#: Inside roots, so that their gradient is finite at 0.
EPS = 1e-10


def log_prob(error: Tensor, t: Tensor, weighting: Weighting, power: float = 0.25) -> Tensor:
    """The surrogate (n,), 0 for a perfect match; in float64, or 1e-10 would be lost.

    Args:
        error: mean squared error m of the direction (n,).
        t: flow time in [0, 1] (n,).
        power: of "ghuber".
    """
    m, t = error.double(), t.double()
    match weighting:
        case "t":
            return -t * m
        case "t2":
            return -t.square() * m
        case "huber":
            return -t * ((m + EPS).sqrt() - EPS**0.5)
        case "ghuber":
            return -t * ((m + EPS) ** power - EPS**power) / power
    return -m


def scaled_advantages(advantages: Tensor, clip: float, largest: float) -> Tensor:
    """Clipped to +-clip, then brought to +-largest (n,)."""
    return advantages.clamp(-clip, clip) / clip * largest


def elbo_std(t: Tensor) -> Tensor:
    """0.7 sqrt(t / (1 - t)) (n,), t at most 0.99 in the divisor: "elbo" divides errors by twice its square."""
    return 0.7 * (t / (1 - t.clamp(0, 0.99))).sqrt()


def slow_decay(updates: int, largest: float) -> float:
    """d after ``updates`` updates."""
    return min(largest, 0.001 * updates)
