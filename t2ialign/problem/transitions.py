"""Transitions of a stochastic sampler, kept to be learnt from, and what the network now makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign.parts.denoiser import Denoiser
from t2ialign.parts.sampler import StepSampler
from t2ialign.tensors.batching import split
from t2ialign.tensors.paths import DiffusionPath, Prediction


@dataclass(frozen=True)
class Buffer:
    """N transitions to learn.

    Attributes:
        x: where they start (N, *latent).
        target: where they should lead (N, *latent).
        step: position of their start on the time grid (N,).
        trajectory: row of the conditioning (N,).
    """

    x: Tensor
    target: Tensor
    step: Tensor
    trajectory: Tensor

    @classmethod
    def of(cls, latents: Tensor, targets: Tensor, steps: Tensor) -> Buffer:
        """The transitions at some ``steps`` of trajectories (B, T + 1, *latent), trajectory by trajectory.

        Args:
            targets: (B, T, *latent).
            steps: positions on the time grid, those with noise.
        """
        trajectory, step = torch.meshgrid(torch.arange(len(latents), device=steps.device), steps, indexing="ij")
        x, target = latents[:, steps].flatten(0, 1), targets[:, steps].flatten(0, 1)
        return cls(x, target, step.flatten(), trajectory.flatten())

    def __len__(self) -> int:
        return len(self.x)


class Policy:
    """The transitions of a buffer under the network as it is now."""

    def __init__(self, denoiser: Denoiser, sampler: StepSampler, buffer: Buffer) -> None:
        """
        Args:
            denoiser: bound to one row per trajectory.
        """
        self.denoiser, self.sampler, self.buffer = denoiser, sampler, buffer
        self.times = sampler.times(denoiser.path).to(buffer.x.device)

    @property
    def trajectories(self) -> int:
        return len(self.denoiser.conditioning)

    def predict(self, rows: Tensor) -> Prediction:
        """The network's prediction where the transitions start."""
        buffer = self.buffer
        return self.denoiser.rows(buffer.trajectory[rows])(buffer.x[rows], self.times[buffer.step[rows]])

    def transition(self, rows: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """Mean (n, *latent) and standard deviation (n, 1, ...) of some transitions."""
        step = self.buffer.step[rows].view(-1, *(1,) * (self.buffer.x.ndim - 1))
        t, s = self.times[step], self.times[step + 1]
        return self.sampler.transition(self.denoiser.path, self.buffer.x[rows], prediction, t, s)

    @torch.no_grad()
    def cached(self, micro_batch: int) -> Prediction:
        """The predictions of all transitions; those of the reference, when made without the LoRA."""
        rows = torch.arange(len(self.buffer), device=self.buffer.x.device)
        parts = [self.predict(rows[part]) for part in split(len(rows), micro_batch)]
        return Prediction(*map(torch.cat, zip(*parts, strict=True)))


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
