"""An exponential moving average of the LoRA's tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "average."


class Average:
    """mean <- d mean + (1 - d) theta after every step, d = min(decay, (1 + n) / (10 + n)) after n steps.

    The warm-up keeps the start, where theta is far from where it goes, from lingering in the average.

    Attributes:
        tensors: the average, named as the parameters.
        steps: updates so far.
    """

    def __init__(self, decay: float, parameters: Mapping[str, Tensor]) -> None:
        self.decay, self.steps = decay, 0
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, parameter in parameters.items():
            self.tensors[name].lerp_(parameter, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: copies on the CPU, names behind ``PREFIX``."""
        own = {f"{PREFIX}{name}": tensor.cpu().clone() for name, tensor in self.tensors.items()}
        return own | {f"{PREFIX}steps": torch.tensor(self.steps)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from ``state()``; other tensors are left alone."""
        self.steps = int(tensors[f"{PREFIX}steps"])
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[f"{PREFIX}{name}"])
