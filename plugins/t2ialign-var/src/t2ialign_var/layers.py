"""Layers that next-scale transformers share. Names of modules and parameters are those of released checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LN(x) (1 + s) + b in float32, LN without parameters of its own; x (B, n, C), scale and shift (B, 1, C)."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS) * (1 + scale) + shift


class KeyValueCache:
    """Keys and values of everything generated so far, one pair of buffers per attention layer.

    Args:
        layers: attention layers.
        length: tokens of all scales together.
    """

    def __init__(self, layers: int, length: int) -> None:
        self.length = length
        self.buffers: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.filled = [0] * layers

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, H, n, hd) keys and values of a layer; returns all of its keys and values so far."""
        if (pair := self.buffers[layer]) is None:
            pair = self.buffers[layer] = tuple(  # type: ignore[assignment]
                x.new_empty(*x.shape[:2], self.length, x.shape[3]) for x in (key, value)
            )
        assert pair is not None
        start, end = self.filled[layer], self.filled[layer] + key.shape[2]
        for buffer, new in zip(pair, (key, value), strict=True):
            buffer[:, :, start:end] = new
        self.filled[layer] = end
        return pair[0][:, :, :end], pair[1][:, :, :end]


class SelfAttention(nn.Module):
    """Attention with one projection for q, k, v, whose bias is added apart: [q_bias, 0, v_bias].

    With ``normalised`` (every released model) q and k have unit length, q times a learned temperature per head.
    """

    zero_k_bias: Tensor

    def __init__(self, width: int, heads: int, normalised: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0))) if normalised else None
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """(B, n, C) -> (B, n, C).

        Args:
            rotation: complex (n, hd / 2) of rotary position embedding, or None.
            mask: (n, n) bool, True where a row may look at a column; None = everywhere.
            cache: what was generated before; the new keys and values are added to it.
            layer: this layer's number in the cache.
        """
        x = x.to(self.mat_qkv.weight.dtype)
        # The projection is called as a module: a LoRA on it must see its input (its weight alone would bypass it).
        qkv = self.mat_qkv(x) + torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, n, hd)
        if self.scale_mul_1H11 is None:
            scale = 0.25 / math.sqrt(q.shape[-1])
        else:
            scale = 1.0
            temperature = self.scale_mul_1H11.float().clamp(max=math.log(100.0)).exp()
            q = F.normalize(q.float(), dim=-1) * temperature
            k = F.normalize(k.float(), dim=-1)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return self.proj(out.transpose(1, 2).flatten(2))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the interleaved pairs (2m, 2m + 1) of (..., n, hd) by complex (n, hd / 2); in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)


class FeedForward(nn.Module):
    """fc2(GELU_tanh(fc1(x)))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x.to(self.fc1.weight.dtype)), approximate="tanh"))


class Modulation(nn.Sequential):
    """A condition (B, C) to gates, scales and shifts (g1, g2, s1, s2, b1, b2) of a block: (B, 1, 6, C)."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, condition: Tensor) -> Tensor:
        linear: Any = self[1]
        return super().forward(condition.to(linear.weight.dtype)).unflatten(-1, (1, 6, -1))


class AdaptiveNorm(nn.Module):
    """LN(x) (1 + s) + b with (s, b) a linear function of SiLU(condition): the norm before the head."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(condition, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition)[:, None].chunk(2, dim=-1)
        return modulated_norm(x, scale, shift)


def block_mask(tokens_per_scale: list[int], device: torch.device | str = "cpu") -> Tensor:
    """Token i may look at token j iff j's scale is not finer: bool (L, L)."""
    level = torch.repeat_interleave(torch.tensor(tokens_per_scale))
    return (level[:, None] >= level).to(device)


def first_scales(tokens_per_scale: list[int], count: int) -> list[int]:
    """The first scales, which hold ``count`` tokens together.

    Raises:
        ValueError: none do.
    """
    for scales in range(1, len(tokens_per_scale) + 1):
        if sum(tokens_per_scale[:scales]) == count:
            return tokens_per_scale[:scales]
    raise ValueError(f"{count} tokens are not those of whole scales of {tokens_per_scale}")
