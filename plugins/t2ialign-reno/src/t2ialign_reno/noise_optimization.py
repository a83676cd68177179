"""ReNO (arXiv 2406.04312): gradient ascent on the initial noise of a frozen one-step generator.

    z ~ N(0, I)
    for i in 1 ... T:
        x = G(z, p)
        if R(x, p) is the highest so far: keep z            the reward alone decides, not the penalty
        g = grad R(G(z, p), p) - lambda grad K(z)
        z = z + solver step along g min(1, c / |g|)         after all but the last image

A point is the state of B such searches: tensors by name, all (B, ...). Rows never mix, so that a batch gives what its
samples give alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from t2ialign_reno.objective import noise_penalty_gradient, norms, per_sample

Solver = Literal["nesterov", "sgd", "adam"]
Point = dict[str, Tensor]
#: Size of the latents that the published learning rates belong to: 4 x 64 x 64.
PUBLISHED_SIZE = 16_384
ADAM_SECOND_DECAY = 0.999
ADAM_EPS = 1e-2


@dataclass(frozen=True)
class Ascent:
    """How the noise moves.

    Attributes:
        learning_rate: step size for latents of the size at hand.
        momentum: of SGD; the first decay of Adam.
        max_gradient_norm: every sample's gradient is shortened to this L2 norm.
        regularisation: lambda, the weight of the penalty K.
    """

    solver: Solver = "nesterov"
    learning_rate: float = 5.0
    momentum: float = 0.9
    max_gradient_norm: float = 0.1
    regularisation: float = 0.01


def scaled_learning_rate(learning_rate: float, size: int) -> float:
    """A published learning rate for latents of ``size`` numbers.

    A clipped step is as long as learning rate x clip whatever the size, but the noise is sqrt(size) long: the ratio of
    the two is what carries over.
    """
    return learning_rate * math.sqrt(size / PUBLISHED_SIZE)


def start(latents: Tensor, solver: Solver) -> Point:
    """Searches that begin at ``latents`` (B, ...), which are also the best so far."""
    latents = latents.float()
    moments = ("first", "second") if solver == "adam" else ("first",)
    return {
        "latents": latents,
        "best_latents": latents.clone(),
        "updates": torch.zeros(len(latents), device=latents.device),
        **{name: torch.zeros_like(latents) for name in moments},
    }


def keep_best(point: Point, improved: Tensor) -> Point:
    """Remember the latents of the rows where ``improved`` (B,) is true."""
    latents = point["latents"]
    return point | {"best_latents": torch.where(per_sample(improved, latents), latents, point["best_latents"])}


def objective_gradient(point: Point, reward_gradient: Tensor, ascent: Ascent) -> Tensor:
    """Gradient of J = R - lambda K (B, ...), unclipped."""
    return reward_gradient - ascent.regularisation * noise_penalty_gradient(point["latents"])


def clip(gradient: Tensor, max_norm: float) -> Tensor:
    """Shorten every sample's gradient to ``max_norm``."""
    return gradient * per_sample((max_norm / (norms(gradient) + 1e-6)).clamp(max=1), gradient)


def ascend(point: Point, gradient: Tensor, ascent: Ascent) -> Point:
    """One solver step along the clipped ``gradient`` of the objective.

    A row whose gradient is not finite goes back to its best latents and forgets its momentum.
    """
    direction, moved = _direction(point, clip(gradient, ascent.max_gradient_norm), ascent)
    moved["latents"] = point["latents"] + ascent.learning_rate * direction
    back = {name: torch.zeros_like(value) for name, value in moved.items()} | {"latents": point["best_latents"]}
    usable = gradient.flatten(1).isfinite().all(1)
    return point | {name: torch.where(per_sample(usable, value), value, back[name]) for name, value in moved.items()}


def _direction(point: Point, gradient: Tensor, ascent: Ascent) -> tuple[Tensor, Point]:
    """The solver's direction (as in torch.optim, with a step count per row), and the state it leaves behind."""
    updates = point["updates"] + 1
    if ascent.solver == "adam":
        first = torch.lerp(gradient, point["first"], ascent.momentum)
        second = torch.lerp(gradient.square(), point["second"], ADAM_SECOND_DECAY)
        mean = first / per_sample(1 - ascent.momentum**updates, first)
        spread = (second / per_sample(1 - ADAM_SECOND_DECAY**updates, second)).sqrt()
        return mean / (spread + ADAM_EPS), {"updates": updates, "first": first, "second": second}
    velocity = ascent.momentum * point["first"] + gradient
    look_ahead = gradient + ascent.momentum * velocity
    return look_ahead if ascent.solver == "nesterov" else velocity, {"updates": updates, "first": velocity}
