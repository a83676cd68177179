"""Recomputed activations change memory, not numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from t2ialign_diffusers.recompute import recompute_blocks


class Stack(nn.Module):
    """Frozen blocks, called with and without keyword arguments, one of them a stack itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([inner, nn.Sequential(nn.Linear(64, 64), nn.Tanh()), nn.Linear(64, 64)])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder.layers:
            x = x + layer(input=x)
        return x


def kept_and_gradient(module: nn.Module, x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Numbers saved for the backward pass, output, gradient."""
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() if tensor is not x else 0
        return tensor

    x = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        y = module(x)
    y.square().sum().backward()
    return saved, y.detach(), x.grad


def test_recomputing_keeps_less_and_gives_the_same_gradient():
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    plain = kept_and_gradient(Stack().eval(), x)
    module = Stack().eval()
    assert recompute_blocks(module) == 3
    recomputed = kept_and_gradient(module, x)
    assert recomputed[0] < plain[0] / 2
    assert torch.equal(recomputed[1], plain[1])
    assert torch.equal(recomputed[2], plain[2])
