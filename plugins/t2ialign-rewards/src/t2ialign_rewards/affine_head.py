"""The five-layer heads without activations of ImageReward and the aesthetic predictor: together one affine map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from t2ialign_rewards.weights import require_keys

LAYERS = (0, 2, 4, 6, 7)


class AffineHead(nn.Module):
    """<weight, x> + bias in float32, whatever the dtype around it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B,)."""
        return x.float() @ self.weight + self.bias

    @classmethod
    def collapse(cls, layers: Mapping[str, Tensor], source: str) -> AffineHead:
        """Multiply ``layers.{0,2,4,6,7}.{weight,bias}`` out; only dropout stands between them.

        Raises:
            UsageError: other keys, for example of a head with ReLUs.
        """
        expected = {f"layers.{i}.{kind}" for i in LAYERS for kind in ("weight", "bias")}
        require_keys(source, expected - layers.keys(), layers.keys() - expected)
        weight = torch.eye(layers["layers.0.weight"].shape[1], dtype=torch.float64)
        bias = torch.zeros(len(weight), dtype=torch.float64)
        for i in LAYERS:
            matrix = layers[f"layers.{i}.weight"].double()
            weight, bias = matrix @ weight, matrix @ bias + layers[f"layers.{i}.bias"].double()
        return cls(weight[0], bias[0])
