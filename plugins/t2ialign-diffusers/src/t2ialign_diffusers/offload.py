"""Frozen weights that wait on the CPU: of all units, only the one that runs has its weights on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

#: A unit's parameters, each with its weights on the CPU.
Weights = list[tuple[nn.Parameter, Tensor]]


class TakingTurns:
    """Units that share the device's memory, one at a time.

    A unit's weights come to the device when its module is called, and leave it when the next unit's is. Being frozen,
    they are never copied back. Everything else (buffers, LoRA factors, modules in no unit) stays on the device.

    A backward pass needs the weights again while other units may have the device. ``recompute_blocks`` on top of this
    calls each unit's forward again at that moment, and so fetches them; without it, such gradients are an error.
    """

    def __init__(self, whole: Iterable[nn.Module], units: Iterable[nn.Module], device: torch.device) -> None:
        """
        Args:
            whole: frozen modules on the CPU, before any LoRA is attached.
            units: non-overlapping parts of ``whole``.
            device: where forward passes run.
        """
        self.device = device
        self.fetched: Weights = []
        waiting = {id(parameter) for unit in units for parameter in self._add(unit)}
        for module in whole:
            for tensor in (*module.parameters(), *module.buffers()):
                if id(tensor) not in waiting:
                    tensor.data = tensor.data.to(device)

    def _add(self, unit: nn.Module) -> list[nn.Parameter]:
        weights = [(parameter, self.home(parameter.data)) for parameter in unit.parameters()]
        for parameter, home in weights:
            parameter.data = home
        unit.forward = self._fetching(weights, unit.forward)
        return [parameter for parameter, _ in weights]

    def _fetching(self, weights: Weights, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.fetched is not weights:
                self.put_back()
                self.fetched = weights
                for parameter, home in weights:
                    parameter.data = self.fetch(home)
            return forward(*args, **kwargs)

        return run

    def home(self, weight: Tensor) -> Tensor:
        """The weight on the CPU; page-locked beside a GPU, which copies such memory several times as fast."""
        return weight.pin_memory() if self.device.type == "cuda" else weight

    def fetch(self, home: Tensor) -> Tensor:
        """A copy on the device."""
        return home.to(self.device, non_blocking=True)

    def put_back(self) -> None:
        """Free the device of the unit that ran last."""
        for parameter, home in self.fetched:
            parameter.data = home
        self.fetched = []
