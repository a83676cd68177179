"""The M-step of DAV (arXiv 2510.00502): learn to follow the found trajectories.

    for every improvement pass, over all transitions (x_t, x_{t-1}) in random order, batch by batch:
        L(theta) = mean of lambda_t [ -log pi_theta(x_{t-1} | x_t) + train_kl KL(pi_theta || pi_0)(x_t) ]
        theta   <- AdamW step along the clipped gradient

pi_0 is the network without its LoRA. lambda_t <= 1 keeps a single step of the grid from ruling the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from t2ialign import Denoiser, Prediction, StepSampler
from t2ialign.tensors.batching import split, with_oom_retry
from t2ialign.tensors.distributed import World
from t2ialign_dav.gaussian import divergence, log_prob, velocity_weights


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


class Losses(NamedTuple):
    """Per transition (n,): what is minimised, the negative log-likelihood, the distance to the reference."""

    total: Tensor
    mle: Tensor
    kl: Tensor


Objective = Callable[[Tensor], Losses]


def likelihood(policy: Policy, reference: Prediction | None, train_kl: float, weight_cap: float | None) -> Objective:
    """lambda_t [ -log pi_theta + train_kl KL ] as a function of buffer rows.

    Args:
        reference: the frozen model's predictions of the whole buffer; None leaves KL out.
        weight_cap: largest weight of a velocity error, in medians over the steps; None sets every lambda to 1.
    """
    weights = step_weights(policy, weight_cap)

    def losses(rows: Tensor) -> Losses:
        mean, std = policy.transition(rows, policy.predict(rows))
        mle, kl = -log_prob(policy.buffer.target[rows], mean, std), torch.zeros(len(rows), device=mean.device)
        if reference is not None:
            kl = divergence(mean, policy.transition(rows, Prediction(*(part[rows] for part in reference)))[0], std)
        return Losses(weights[policy.buffer.step[rows]] * (mle + train_kl * kl), mle, kl)

    return losses


def step_weights(policy: Policy, cap: float | None) -> Tensor:
    """lambda of every step (T,)."""
    implied = velocity_weights(policy.sampler, policy.denoiser.path, policy.times)
    if cap is None:
        return torch.ones_like(implied)
    median = implied[policy.buffer.step.unique()].median()
    return (cap * median / implied).clamp(max=1)


def shuffled(count: int, updates: int, fraction: float, source: torch.Generator) -> Iterator[Tensor]:
    """A random ``fraction`` of ``count`` rows in random order, cut into ``updates`` batches."""
    order = torch.randperm(count, generator=source)
    return iter(order[: max(1, round(fraction * count))].tensor_split(updates))


class Progress(NamedTuple):
    """Means over all transitions that were learnt, and over all updates."""

    mle: float
    kl: float
    gradient_norm: float


def improve(
    parameters: Sequence[nn.Parameter],
    solver: torch.optim.Optimizer,
    objective: Objective,
    updates: Iterable[Tensor],
    max_norm: float,
    micro_batch: int,
    world: World,
) -> tuple[Progress, int]:
    """One solver step for each batch of buffer rows; ranks share every batch.

    Returns:
        What was learnt, and the micro-batch that fits into memory.
    """
    totals, norms, count = torch.zeros(2), [], 0
    for rows in updates:
        mine = rows[world.rank :: world.size]

        def accumulate(size: int, mine: Tensor = mine, total: int = len(rows)) -> Tensor:
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            sums = torch.zeros(2)
            for part in mine.split(size):
                losses = objective(part.to(parameters[0].device))
                (losses.total.sum() / total).backward()
                sums += torch.stack([losses.mle.sum(), losses.kl.sum()]).detach().cpu()
            return sums

        sums, micro_batch = with_oom_retry(accumulate, micro_batch)
        sum_over_ranks(parameters, world)
        norms.append(nn.utils.clip_grad_norm_(parameters, max_norm))
        solver.step()
        totals += world.gather(sums[None].to(parameters[0].device)).sum(0).cpu()
        count += len(rows)
    mle, kl = (totals / count).tolist()
    return Progress(mle, kl, torch.stack(norms).mean().item()), micro_batch


def sum_over_ranks(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Add up every rank's gradients."""
    if world.size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = world.gather(torch.cat([gradient.flatten() for gradient in gradients])[None]).sum(0)
    for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
