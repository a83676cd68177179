"""What drawing images left behind: clean latents, images, and the trajectory of a stochastic sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign.errors import blaming
from t2ialign.parts.backend import Backend
from t2ialign.parts.sampler import Sampler, StepSampler, checked_latents
from t2ialign.problem import checks
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.gaussian import log_prob


@dataclass(frozen=True)
class Rollout:
    """B drawn images, float32.

    Attributes:
        latents: clean latents (B, *latent_shape).
        images: (B, 3, H, W) in [0, 1].
        trajectory: x_T ... x_0 (B, T + 1, *latent_shape) where it was kept, else None.
        log_probs: log-density (B, T) of every transition, its mean over latent dimensions; 0 for steps without noise.
    """

    latents: Tensor
    images: Tensor
    trajectory: Tensor | None = None
    log_probs: Tensor | None = None


def draw(
    backend: Backend,
    sampler: Sampler | None,
    conditioning: Conditioning,
    seeds: Sequence[int],
    trajectory: bool,
    noise: Tensor | None = None,
) -> Rollout:
    """One micro-batch.

    Raises:
        ValueError: no sampler, or a trajectory is wanted of one without transitions.
    """
    if sampler is None:
        raise ValueError("a rollout needs a sampler")
    with blaming(backend.label):
        denoiser, noise = backend.denoiser(conditioning), backend.noise(seeds) if noise is None else noise
    if not trajectory:
        with blaming(sampler.label):
            latents = checked_latents(sampler, sampler.sample(denoiser, noise, seeds), noise)
        return Rollout(latents, _decoded(backend, latents))
    if not isinstance(sampler, StepSampler):
        raise ValueError(f"{type(sampler).__name__} has no transitions: it is no StepSampler")
    states, log_probs = [], []
    with blaming(sampler.label):
        for step in sampler.walk(denoiser, noise, seeds):
            states.append(step.x)
            noisy = bool((step.std > 0).any())
            log_probs.append(log_prob(step.next, step.mean, step.std) if noisy else step.x.new_zeros(len(step.x)))
        latents = checked_latents(sampler, step.next, noise)
    return Rollout(latents, _decoded(backend, latents), torch.stack([*states, latents], 1), torch.stack(log_probs, 1))


def _decoded(backend: Backend, latents: Tensor) -> Tensor:
    with blaming(backend.label):
        images = backend.decode(latents)
    return checks.images(backend, images, len(latents))


def joined(parts: Sequence[Rollout]) -> Rollout:
    """Micro-batches as one."""
    kept = parts[0].trajectory is not None
    return Rollout(
        torch.cat([part.latents for part in parts]),
        torch.cat([part.images for part in parts]),
        torch.cat([part.trajectory for part in parts if part.trajectory is not None]) if kept else None,
        torch.cat([part.log_probs for part in parts if part.log_probs is not None]) if kept else None,
    )
