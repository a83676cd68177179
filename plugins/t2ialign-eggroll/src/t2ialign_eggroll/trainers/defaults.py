"""Steps and noise that need no tuning: everything in units of each parameter's own size.

A matrix's unit is the rms of its entries at the start of training, a vector's that of the matrix before it, so that a
sigma of 0.5 disturbs every layer by half of what it is. A step is a fixed multiple of what the noise resolves: with P
perturbations of D numbers the estimated direction keeps a share sqrt(P / D) of a member's length, so the step is

    STEP sqrt(P / D) sigma   per entry, never more than sigma.

STEP = 1.6 and sigma = 0.5 were chosen on handwritten digits; docs/performance.md has a convolutional network and a
transformer beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from t2ialign_eggroll.trainers.clipup import ClipUp

#: Step per entry in units of sigma sqrt(P / D).
STEP = 1.6
#: Noise scale in units.
SIGMA = 0.5

OptimizerName = Literal["clipup", "adam", "momentum", "sgd"]
OPTIMIZERS: tuple[OptimizerName, ...] = ("clipup", "adam", "momentum", "sgd")


def units(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """The unit of every parameter, by name.

    A matrix or kernel: the rms of its entries; where they are all 0, 1 / sqrt(3 fan_in), the rms of torch's default
    initialisation. A vector: the unit of the last matrix before it; without one, of the first after it; 1 if there is
    no matrix at all.
    """
    found: dict[str, float] = {}
    matrices = [_own(p) for p in parameters.values() if p.ndim > 1]
    last = matrices[0] if matrices else 1.0
    for name, p in parameters.items():
        last = _own(p) if p.ndim > 1 else last
        found[name] = last
    return found


def _own(p: Tensor) -> float:
    rms = p.detach().float().square().mean().sqrt().item()
    return rms if rms > 0 else 1 / math.sqrt(3 * p[0].numel())


def step_length(sigma: float, perturbations: int, size: int) -> float:
    """Step per entry, in units: for P perturbations of ``size`` numbers."""
    return min(1.0, STEP * math.sqrt(perturbations / size)) * sigma


def make_optimizer(
    kind: str, parameters: list[nn.Parameter], step: float, longest: float = math.inf
) -> torch.optim.Optimizer:
    """A torch optimizer whose steps have an rms of ``step`` per entry along directions that do not repeat, as noisy
    ones hardly do; a steady direction is followed up to four times as fast by "adam" and "momentum".

    Args:
        longest: of Adam's steps, the first of which are as long as its rate whatever the noise.

    Raises:
        ValueError: an unknown kind.
    """
    match kind:
        case "clipup":
            return ClipUp(parameters, lr=step * math.sqrt(sum(p.numel() for p in parameters)) / 2)
        case "adam":
            return torch.optim.Adam(parameters, lr=min(step * math.sqrt(1.9 / 0.1), longest))
        case "momentum":
            return torch.optim.SGD(parameters, lr=step * math.sqrt(1 - 0.9**2), momentum=0.9)
        case "sgd":
            return torch.optim.SGD(parameters, lr=step)
    raise ValueError(f"unknown optimizer '{kind}': {', '.join(OPTIMIZERS)}, or a function of the parameters")
