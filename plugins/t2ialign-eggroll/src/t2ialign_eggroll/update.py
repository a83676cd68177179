"""From shaped fitness to new parameters: pseudo-gradient, solver step, caps, learning-rate schedule.

With fitness f_i and member i at theta + sigma E_i, g = mean_i f_i E_i. The papers' codes scale g differently, so
their learning rates are not interchangeable; the three scalings are named step rules:

    upstream    sigma g              HyperscaleES_T2I
    eggroll     sigma sqrt(N) g      the authors' JAX code, eggroll-trainer
    textbook    g / sigma            the score-function estimator of grad E[F(theta + sigma E)]
    output      sqrt(P) g            ours: P perturbations and fitness of unit spread give entries of rms 1

For SGD a rate a of the textbook rule equals a / sigma^2 upstream and a / (sigma^2 sqrt(N)) in the eggroll rule.
The output rule's rate is the length of a step itself, relative to what each layer has; sigma, the population and the
rank of the LoRA do not change what it means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from t2ialign.tensors.batching import split
from t2ialign_eggroll.noise import Draw, Members
from t2ialign_eggroll.shaping import Fitness

#: Pairs whose noise is in memory at once during the update. Fixed, so that the sum does not depend on the micro-batch.
PAIRS_PER_BLOCK = 32


def step_scale(rule: str, sigma: float, population: int, *, antithetic: bool = True) -> float:
    """What multiplies mean_i f_i E_i under a step rule.

    Args:
        population: the members N that take part.
        antithetic: they are pairs, P = N / 2; else P = N.
    """
    match rule:
        case "upstream":
            return sigma
        case "eggroll":
            return sigma * math.sqrt(population)
        case "textbook":
            return 1 / sigma
        case "output":
            return math.sqrt(population / 2 if antithetic else population)
    raise ValueError(f"unknown step rule '{rule}': upstream, eggroll, textbook or output")


def pair_weights(fitness: Tensor, members: Members) -> Tensor:
    """(P,): d_p = f(+E_p) - f(-E_p), or f of a member without a partner. sum_i f_i sign_i E_i = sum_p d_p E_p."""
    everyone = slice(0, members.count)
    weights = fitness.new_zeros(members.pairs)
    return weights.index_add_(
        0, members.pair(everyone, fitness.device), fitness * members.sign(everyone, fitness.device).to(fitness)
    )


def mean_perturbation(draw: Draw, members: Members, fitness: Fitness, *, sign_only: bool = False) -> dict[str, Tensor]:
    """mean_i f_i E_i over the members that take part, per parameter: one contraction over pairs, drawn block by block.

    Args:
        draw: gives the perturbations of any pairs, once more.
        sign_only: use the signs of the noise factors in place of the factors.
    """
    weights = pair_weights(fitness.values.float(), members) / fitness.used.sum().clamp(min=1)
    total: dict[str, Tensor] = {}
    for rows in split(members.pairs, PAIRS_PER_BLOCK):
        for name, perturbation in draw(range(members.pairs)[rows]).items():
            part = (perturbation.sign() if sign_only else perturbation).contract(weights[rows])
            total[name] = total[name] + part if name in total else part
    return total


def mean_square(draw: Draw, members: Members, fitness: Fitness) -> dict[str, Tensor]:
    """mean_i f_i E_i^2, entry by entry, over the members that take part, per parameter.

    Args:
        draw: gives the perturbations of any pairs, once more.
    """
    everyone = slice(0, members.count)
    values = fitness.values.float()
    weights = values.new_zeros(members.pairs).index_add_(0, members.pair(everyone, values.device), values)
    weights = weights / fitness.used.sum().clamp(min=1)
    total: dict[str, Tensor] = {}
    for rows in split(members.pairs, PAIRS_PER_BLOCK):
        for name, perturbation in draw(range(members.pairs)[rows]).items():
            square = perturbation.dense().square()
            part = torch.tensordot(weights[rows].to(square), square, dims=1)
            total[name] = total[name] + part if name in total else part
    return total


def make_solver(
    kind: str, parameters: Mapping[str, nn.Parameter], learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """A torch optimizer with one group, named, per parameter, so that each can have a learning rate of its own."""
    solvers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    groups = [{"params": [p], "name": name} for name, p in parameters.items()]
    return solvers[kind](groups, lr=learning_rate, weight_decay=weight_decay)


@torch.no_grad()
def ascend(
    solver: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    direction: Mapping[str, Tensor],
    max_step_norm: float | None = None,
    max_norm: float | None = None,
) -> Tensor:
    """One solver step along ``direction``, then the cap on the step, then the cap on the norm.

    Parameters without a direction have no gradient, so the solver leaves them alone, weight decay included.

    Args:
        max_step_norm: a longer step (L2 over all parameters with a direction) is shortened to this.
        max_norm: parameters with a larger L2 norm are shrunk to this.

    Returns:
        L2 norm of the step that was made, after the caps.
    """
    moved = {name: parameters[name] for name in direction}
    before = {name: p.detach().clone() for name, p in moved.items()}
    for name, p in moved.items():
        p.grad = -direction[name].to(p)
    solver.step()
    for p in moved.values():
        p.grad = None
    if max_step_norm is not None:
        scale = _shrink(norm(p - before[name] for name, p in moved.items()), max_step_norm)
        for name, p in moved.items():
            p.copy_(before[name] + scale * (p - before[name]))
    if max_norm is not None:
        scale = _shrink(norm(moved.values()), max_norm)
        for p in moved.values():
            p.mul_(scale)
    return norm(p - before[name] for name, p in moved.items())


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """L2 norm over all entries of all tensors."""
    squares = [t.detach().to(torch.promote_types(t.dtype, torch.float32)).square().sum() for t in tensors]
    return torch.stack(squares).sum().sqrt()


def _shrink(length: Tensor, limit: float) -> Tensor:
    return torch.where(length > limit, limit / (length + 1e-8), torch.ones_like(length))


def schedule(kind: str, progress: float, final_fraction: float) -> float:
    """Factor of the learning rate at ``progress`` in [0, 1]: from 1 to ``final_fraction``."""
    match kind:
        case "constant":
            return 1.0
        case "linear":
            return 1 + (final_fraction - 1) * progress
        case "cosine":
            return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2
    raise ValueError(f"unknown schedule '{kind}': constant, linear or cosine")
