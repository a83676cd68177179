"""MPS's cross model: image tokens look at the prompt's tokens, then at each other.

Modules carry the names of the released weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2ialign.errors import UsageError
from t2ialign_rewards.weights import require_keys

ROTARY_BASE = 10000.0


class SwiGLU(nn.Module):
    """(..., 2 D) as halves (u, g) -> silu(g) * u (..., D)."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class Residual(nn.Module):
    """x + fn(x, ...)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *arguments: Tensor) -> Tensor:
        return x + self.fn(x, *arguments)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multi-query attention: many query heads on one head of keys and values.

    Args:
        query: (B, H, N, d).
        key, value: (B, M, d).
        bias: added to the attention logits, broadcastable to (B, H, N, M).

    Returns:
        (B, N, H d).
    """
    mixed = F.scaled_dot_product_attention(query, key[:, None], value[:, None], attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Attention from image tokens to text tokens, plus a feed-forward net on the image tokens."""

    def __init__(self, dim: int, heads: int, dim_head: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * hidden, bias=False), SwiGLU(), nn.Linear(hidden, dim, bias=False))

    def forward(self, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        x = self.norm(x)
        query = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.to_kv(context).chunk(2, dim=-1)
        return self.to_out(attend(query, key, value, bias)) + self.ff(x)


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021), halves layout, of (..., N, d); computed in float32."""
    half = x.shape[-1] // 2
    frequencies = ROTARY_BASE ** -(torch.arange(half, device=x.device) / half)
    angles = torch.outer(torch.arange(x.shape[-2], device=x.device), frequencies).repeat(1, 2)
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()).to(x.dtype)


class ParallelBlock(nn.Module):
    """Self-attention and feed-forward net side by side, from one fused projection."""

    def __init__(self, dim: int, heads: int, dim_head: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.parts = (heads * dim_head, dim_head, dim_head, 2 * hidden)
        self.norm = nn.LayerNorm(dim)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(hidden, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, hidden = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        query = rotate(query.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        return self.attn_out(attend(query, rotate(key), value)) + self.ff_out(hidden)


class CrossModel(nn.Module):
    """q <- q + Cross(q, text); q <- q + Par(q), layer by layer."""

    def __init__(self, layers: int, dim: int, heads: int, dim_head: int, hidden: int) -> None:
        super().__init__()
        sizes = (dim, heads, dim_head, hidden)
        self.layers = nn.ModuleList(
            nn.ModuleList([Residual(CrossAttention(*sizes)), Residual(ParallelBlock(*sizes))]) for _ in range(layers)
        )

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, bias: Tensor) -> Tensor:
        """Image tokens after looking at the text.

        Args:
            image_tokens: (B, N, D).
            text_tokens: (B, M, D).
            bias: (B, M), 0 where a text token is looked at and -inf where it is not.

        Returns:
            (B, N, D).
        """
        bias = bias[:, None, None, :].to(image_tokens.dtype)
        for layer in self.layers:
            cross, parallel = cast(nn.ModuleList, layer)
            image_tokens = parallel(cross(image_tokens, text_tokens, bias))
        return image_tokens

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], source: str) -> CrossModel:
        """A model whose sizes are read off the weights' shapes.

        Raises:
            UsageError: keys are missing or left over, or shapes contradict each other.
        """
        cross = "layers.0.0.fn"
        needed = {f"{cross}.{name}.weight" for name in ("to_q", "to_kv", "ff.2")}
        require_keys(source, needed - state.keys(), ())
        inner, dim = state[f"{cross}.to_q.weight"].shape
        dim_head = state[f"{cross}.to_kv.weight"].shape[0] // 2
        layers = len({key.split(".")[1] for key in state if key.startswith("layers.")})
        model = cls(layers, dim, inner // dim_head, dim_head, state[f"{cross}.ff.2.weight"].shape[1])
        # The rotary frequencies are constants; the released ones are rounded to half precision.
        trained = {key: value for key, value in state.items() if not key.endswith(".rotary_emb.inv_freq")}
        try:
            report = model.load_state_dict(trained, strict=False)
        except RuntimeError as error:
            raise UsageError(f"weights of {source} do not fit MPS: {error}") from error
        require_keys(source, report.missing_keys, report.unexpected_keys)
        return model
