"""The noise network f inside the generator: one set of base weights, and a LoRA that makes them f."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign import UsageError
from t2ialign.lora.adapter import Adapter


class NoiseNetwork:
    """Switches between g, the network without its LoRA, and f, the network with it.

    In f the last projection is its LoRA alone, without weight and bias, so that f is 0 while the LoRA's B is.

    Attributes:
        last: path of that layer.
    """

    def __init__(self, adapter: Adapter, last: str | None = None) -> None:
        """
        Args:
            last: default: the last linear or convolutional layer of the network.

        Raises:
            UsageError: there is no such layer, or it has no LoRA.
        """
        self.adapter, self.last = adapter, last or last_layer(adapter.module)
        if self.last not in adapter.layers:
            names = [name for name, _ in adapter.module.named_modules()]
            what = (
                "has no LoRA: name it in backend.lora.targets" if self.last in names else "is no layer of the network"
            )
            raise UsageError(
                f"the last layer '{self.last}' {what}; layers with one: {', '.join(sorted(adapter.layers))}"
            )
        self.active = False
        base = adapter.layers[self.last].get_base_layer()
        self.handle = base.register_forward_hook(self._without_base)

    def _without_base(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return torch.zeros_like(output) if self.active else None

    @contextmanager
    def noise_network(self) -> Iterator[None]:
        """Inside, the network is f; recomputed activations of its backward pass must be inside, too."""
        before, self.active = self.active, True
        try:
            yield
        finally:
            self.active = before

    @contextmanager
    def generator(self) -> Iterator[None]:
        """Inside, the network is g, also within ``noise_network``."""
        before, self.active = self.active, False
        try:
            with self.adapter.disabled():
                yield
        finally:
            self.active = before


def last_layer(module: nn.Module) -> str:
    """Path of the last linear or convolutional layer, LoRA layers seen as what they adapt.

    Raises:
        UsageError: there is none.
    """
    found = [
        name.removesuffix(".base_layer")
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name
    ]
    if not found:
        raise UsageError(f"{type(module).__name__} has no linear or convolutional layer")
    return found[-1]


def start(adapter: Adapter, normal: Callable[[str, torch.Size], Tensor]) -> None:
    """A ~ N(0, 1 / r^2) and B = 0, as published.

    Args:
        normal: path of a layer and a shape to unit noise.
    """
    tensors: Mapping[str, nn.Parameter] = adapter.parameters()
    with torch.no_grad():
        for name, tensor in tensors.items():
            path, side = name.rsplit(".lora_", 1)
            if side.startswith("A"):
                tensor.copy_(normal(path, tensor.shape) / adapter.ranks[path])
            else:
                tensor.zero_()
