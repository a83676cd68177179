"""The M-step of DAV (arXiv 2510.00502): learn to follow the found trajectories.

    for every improvement pass, over all transitions (x_t, x_{t-1}) in random order, batch by batch:
        L(theta) = mean of lambda_t [ -log pi_theta(x_{t-1} | x_t) + train_kl KL(pi_theta || pi_0)(x_t) ]
        theta   <- AdamW step along the clipped gradient

pi_0 is the network without its LoRA. lambda_t <= 1 keeps a single step of the grid from ruling the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from t2ialign import Prediction
from t2ialign.problem.transitions import Policy, velocity_weights
from t2ialign.tensors.accumulation import accumulate
from t2ialign.tensors.distributed import World
from t2ialign.tensors.gaussian import divergence, log_prob


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
    fixed: bool = False,
) -> tuple[Progress, int]:
    """One solver step for each batch of buffer rows; ranks share every batch, in a ``fixed`` micro-batch if so.

    Returns:
        What was learnt, and the micro-batch that fits into memory.
    """
    totals = {"mle": 0.0, "kl": 0.0}
    norms, count = [], 0
    for rows in updates:
        means, micro_batch = accumulate(
            parameters, rows, lambda part: objective(part)._asdict(), list(totals), micro_batch, world, fixed
        )
        norms.append(nn.utils.clip_grad_norm_(parameters, max_norm))
        solver.step()
        count += len(rows)
        totals = {name: total + len(rows) * means[name] for name, total in totals.items()}
    return Progress(totals["mle"] / count, totals["kl"] / count, torch.stack(norms).mean().item()), micro_batch
