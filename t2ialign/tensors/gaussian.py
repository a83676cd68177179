"""Gaussian transitions x_s ~ N(mean, std^2), per latent dimension.

Log-probabilities and divergences are means over the latent dimensions, as in the published codes of DDPO, Flow-GRPO and
DAV: multiply by the number of dimensions for those of whole latents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean log-density (n,) of rows x (n, ...) under N(mean, std^2); std broadcasts."""
    density = -(((x - mean) / std) ** 2) / 2 - torch.log(std) - math.log(2 * math.pi) / 2
    return density.flatten(1).mean(1)


def divergence(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """Mean KL(N(mean, std^2) || N(other, std^2)) of rows (n, ...): (n,)."""
    return (((mean - other) / std) ** 2 / 2).flatten(1).mean(1)
