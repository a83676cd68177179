"""Gaussian transitions x_s ~ N(mean, std^2) of a stochastic sampler, per latent dimension.

Log-probabilities and divergences are means over the latent dimensions, as in the published codes of DDPO and DAV:
multiply by the number of dimensions for those of whole latents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from t2ialign import Prediction, StepSampler
from t2ialign.tensors.paths import DiffusionPath


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean log-density (n,) of rows x (n, ...) under N(mean, std^2); std broadcasts."""
    density = -(((x - mean) / std) ** 2) / 2 - torch.log(std) - math.log(2 * math.pi) / 2
    return density.flatten(1).mean(1)


def divergence(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """Mean KL(N(mean, std^2) || N(other, std^2)) of rows (n, ...): (n,)."""
    return (((mean - other) / std) ** 2 / 2).flatten(1).mean(1)


def noise_levels(sampler: StepSampler, path: DiffusionPath, times: Tensor) -> Tensor:
    """Standard deviation of every step on the time grid, (T,)."""
    zero = torch.zeros_like(times[:-1])
    _, std = sampler.transition(path, zero, Prediction(zero, zero), times[:-1], times[1:])
    return std.expand(zero.shape)


def velocity_weights(sampler: StepSampler, path: DiffusionPath, times: Tensor) -> Tensor:
    """What a log-likelihood makes of an error in the network's velocity, for each step: k^2 / (2 std^2), (T,).

    An error d of the velocity moves (x0, eps) by (-sigma d, alpha d), which keeps alpha x0 + sigma eps = x, and the
    transition's mean, affine in the prediction, by k d. Infinite for steps without noise.
    """
    t, s = times[:-1], times[1:]
    k, std = sampler.transition(path, torch.zeros_like(t), Prediction(-path.sigma(t), path.alpha(t)), t, s)
    return k**2 / (2 * std**2)
