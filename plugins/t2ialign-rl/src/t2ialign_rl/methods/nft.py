"""DiffusionNFT (arXiv 2509.16117): learn from good and bad images by denoising them, without likelihoods.

x0 ~ old policy, any sampler;   r = clamp(A / 2M + 1/2, 0, 1)          how likely the image is a good one
x_t = alpha x0 + sigma eps
x0+ = beta x0_theta + (1 - beta) x0_old                                implicit positive policy
x0- = (1 + beta) x0_old - beta x0_theta                                implicit negative policy
l   = [ r |x0+ - x0|^2 / w+ + (1 - r) |x0- - x0|^2 / w- ] / beta       w: mean absolute errors, no gradient
L   = mean of M l + kl |v_theta - v_base|^2
old <- d old + (1 - d) theta                                           d follows a schedule
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from t2ialign_rl.advantages import clipped
from t2ialign_rl.config import NftConfig
from t2ialign_rl.forward_process import ForwardProcess, Noised, distance, predicted

Mode = Literal["all", "positive-only", "negative-only", "one-only", "binary"]
Decay = Literal["none", "linear", "delayed"]
#: Smallest mean absolute error that divides a loss.
SMALLEST = 1e-5


def optimality(advantages: Tensor, clip: float, mode: Mode = "all") -> Tensor:
    """r in [0, 1] (n,): 1/2 for an average image.

    Args:
        clip: M, the advantage from which on an image counts as surely good.
        mode: which advantages count: all, those of one sign, 1 for good ones and 0 else, or their signs.
    """
    a = clipped(advantages, clip)
    match mode:
        case "positive-only":
            a = a.clamp(min=0)
        case "negative-only":
            a = a.clamp(max=0)
        case "one-only":
            a = (a > 0).to(a)
        case "binary":
            a = a.sign()
    return (a / (2 * clip) + 0.5).clamp(0, 1)


def divisor(error: Tensor) -> Tensor:
    """w (n,) of the errors of rows (n, ...): their mean absolute value, without gradient and never 0."""
    return error.detach().double().abs().flatten(1).mean(1).clamp(min=SMALLEST)


def matching(estimate: Tensor, x0: Tensor) -> Tensor:
    """Squared error over mean absolute error of rows (n, ...): (n,)."""
    error = estimate - x0
    return error.square().flatten(1).mean(1) / divisor(error).to(error)


def nft_loss(x0_theta: Tensor, x0_old: Tensor, x0: Tensor, r: Tensor, beta: float) -> Tensor:
    """l (n,), before the factor M.

    Args:
        x0_theta, x0_old: the two policies' estimates of x0 from the same noised latents (n, ...).
        r: (n,).
        beta: how far the implicit policies are from the old one.
    """
    positive = matching(beta * x0_theta + (1 - beta) * x0_old, x0)
    negative = matching((1 + beta) * x0_old - beta * x0_theta, x0)
    return (r * positive + (1 - r) * negative) / beta


def old_decay(schedule: Decay, updates: int) -> float:
    """d after ``updates`` updates: 0; min(updates / 1000, 1/2); or 0 until 75, then min(0.0075 (n - 75), 0.999)."""
    match schedule:
        case "linear":
            return min(0.001 * updates, 0.5)
        case "delayed":
            return 0.0 if updates < 75 else min(0.0075 * (updates - 75), 0.999)
    return 0.0


class Nft(ForwardProcess):
    """The old policy draws; the loss is on x0."""

    Config = NftConfig
    losses_reported = ("policy", "kl")

    def drawing(self) -> AbstractContextManager[None]:
        return self.problem.adapter.swapped(self.old)

    def decay(self) -> float:
        return old_decay(self.config.old_decay, self.updates)

    def positions(self, source: torch.Generator) -> Tensor:
        usable = int(self.config.grid * self.config.timestep_fraction)
        return torch.randperm(usable, generator=source)[: self.config.times]

    def losses(self, rows: Noised, behaviour: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        config, adapter = self.config, self.problem.adapter
        path = rows.denoiser.path
        # The others come before theta, whose graph a swap would break.
        old = predicted(rows, adapter.swapped(self.old)).x0
        base = predicted(rows, adapter.disabled()) if config.kl else None
        prediction = rows.denoiser(rows.x, rows.t)
        r = optimality(rows.advantages, config.advantage_clip, config.advantage_mode).to(old)
        policy = config.advantage_clip * nft_loss(prediction.x0, old, rows.x0, r, config.beta)
        kl = distance(path, prediction, base)
        return {"total": policy + config.kl * kl, "policy": policy, "kl": kl}
