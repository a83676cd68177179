"""What forward-process methods share: noised clean latents, errors of the network's direction, and times.

The direction is what the path's ODE follows: the velocity eps - x0 for rectified flows, eps for VP models. Any network
has one, whatever it predicts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ialign import Prediction
from t2ialign.tensors.paths import DiffusionPath, LinearPath


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of rows (n, ...): (n,)."""
    return (a - b).square().flatten(1).mean(1)


def like_rows(values: Tensor, x: Tensor) -> Tensor:
    """(n,) shaped to broadcast against x (n, ...)."""
    return values.view(-1, *(1,) * (x.ndim - 1))


def noised(path: DiffusionPath, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) eps, one time (n,) for each row (n, ...)."""
    alpha, sigma = path.coefficients(t)
    return like_rows(alpha, x0) * x0 + like_rows(sigma, x0) * noise


def along(path: DiffusionPath, x: Tensor, t: Tensor, direction: Tensor) -> Prediction:
    """The prediction at x (n, ...) and t (n,) that has this direction (n, ...)."""
    alpha, sigma = (like_rows(c, x) for c in path.coefficients(t))
    if isinstance(path, LinearPath):
        return Prediction((x - sigma * direction) / (alpha + sigma), (x + alpha * direction) / (alpha + sigma))
    return Prediction((x - sigma * direction) / alpha, direction)


def flow_time(path: DiffusionPath, t: Tensor) -> Tensor:
    """sigma / (alpha + sigma) in [0, 1]: t itself for rectified flows, and its equal for all others."""
    alpha, sigma = path.coefficients(t)
    return sigma / (alpha + sigma)


def stratified(u: Tensor, steps: int, fraction: float, first: int = 0) -> Tensor:
    """Positions on a time grid, one in each of equal parts of the first ``fraction`` of it.

    Args:
        u: uniform draws in [0, 1), the last axis over the parts (..., k).
        steps: of the grid; positions stay below int(steps * fraction).
        first: 1 leaves the noisiest time out.

    Returns:
        int64 (..., k), ascending.
    """
    edges = torch.linspace(first, int(steps * fraction), u.shape[-1] + 1, device=u.device).floor()
    return (edges[:-1] + (u * edges.diff()).floor()).long()
