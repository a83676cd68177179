"""Infinity's transformer: VAR's, with text, rotary positions, and two logits per bit (arXiv 2412.04431)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ialign_infinity.text import PackedText
from t2ialign_var.layers import (
    EPS,
    AdaptiveNorm,
    FeedForward,
    KeyValueCache,
    Modulation,
    SelfAttention,
    block_mask,
    modulated_norm,
)

SCALE_EMBEDDINGS = 15
POOL_HEAD_CHANNELS = 128


@dataclass(frozen=True)
class TextContext:
    """What the text gives the transformer; computed once for all scales.

    Attributes:
        start: pooled text (R, D): the first token, and the condition of every modulation.
        keys_values: keys and values of every block's cross-attention, each (R, H, L, hd).
        mask: bool (R, 1, 1, L).
    """

    start: Tensor
    keys_values: list[tuple[Tensor, Tensor]]
    mask: Tensor


def keys_and_values(attention: Any, text: PackedText, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (R, H, L, hd) from packed tokens (T, C); ``mat_kv`` has its bias apart: [0, v_bias]."""
    # Called as a module: a LoRA on it must see its input.
    projected = text.through(attention.mat_kv, tokens.to(attention.mat_kv.weight.dtype))
    projected = projected + torch.cat([attention.zero_k_bias, attention.v_bias])
    k, v = text.pad(projected).unflatten(-1, (2, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    return k, v


class TextPool(nn.Module):
    """Attention of one learned query per head over a prompt's tokens: (R, D)."""

    zero_k_bias: Tensor

    def __init__(self, text_channels: int, width: int) -> None:
        super().__init__()
        self.heads = text_channels // POOL_HEAD_CHANNELS
        self.mat_q = nn.Parameter(torch.zeros(1, self.heads, width // self.heads))
        self.mat_kv = nn.Linear(text_channels, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, text: PackedText, tokens: Tensor) -> Tensor:
        k, v = keys_and_values(self, text, tokens)
        q = self.mat_q[:, :, None].expand(text.rows, -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=text.mask)
        return self.proj(out.flatten(1))


class TextStart(nn.Module):
    """The pool under the name ".ca", as in released files."""

    def __init__(self, text_channels: int, width: int) -> None:
        super().__init__()
        self.ca = TextPool(text_channels, width)

    def forward(self, text: PackedText, tokens: Tensor) -> Tensor:
        return self.ca(text, tokens)


class CrossAttention(nn.Module):
    """Image tokens look at the prompt's tokens."""

    zero_k_bias: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = nn.Linear(width, width)
        self.mat_kv = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        q = self.mat_q(x.to(self.mat_q.weight.dtype)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, *keys_values, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class Norm32(nn.LayerNorm):
    """Layer norm in float32, whatever the dtype of its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; the first and the last modulated and gated by the text."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        self.sa = SelfAttention(width, heads)
        self.ca = CrossAttention(width, heads)
        self.ca_norm = Norm32(width, eps=EPS)
        self.ffn = FeedForward(width, round(4 * width / 256) * 256)

    def forward(
        self, x: Tensor, modulation: Tensor, keys_values: tuple[Tensor, Tensor], text_mask: Tensor, **attention: Any
    ) -> Tensor:
        g1, g2, s1, s2, b1, b2 = (self.ada_gss + modulation).float().unbind(2)
        x = x + g1 * self.sa(modulated_norm(x, s1, b1), **attention)
        x = x + self.ca(self.ca_norm(x), keys_values, text_mask)
        return x + g2 * self.ffn(modulated_norm(x, s2, b2))


class Chunk(nn.Module):
    """Consecutive blocks under the name ".module", as in released files."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)


class InfinityTransformer(nn.Module):
    """Logits of the next scale's bits.

    Args:
        bits: bits per token.
        depth, width, heads: of the transformer.
        chunks: groups that the blocks' names come in.
        text_channels: channels of the text encoder.
        text_length: most text tokens.

    Attributes:
        half_precision: parts that may be stored in 16 bits; text, embeddings, the residual stream and the head stay
            float32.
    """

    half_precision = ("block_chunks.",)

    def __init__(
        self, bits: int, depth: int, width: int, heads: int, chunks: int, text_channels: int, text_length: int
    ) -> None:
        super().__init__()
        self.bits = bits
        self.depth = depth
        self.head_dim = width // heads
        self.text_length = text_length
        self.cfg_uncond = nn.Parameter(torch.zeros(text_length, text_channels))
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.text_norm = nn.RMSNorm(text_channels, eps=EPS)
        self.text_proj_for_sos = TextStart(text_channels, width)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(text_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.lvl_embed = nn.Embedding(SCALE_EMBEDDINGS, width)
        self.word_embed = nn.Linear(bits, width)
        self.shared_ada_lin = Modulation(width)
        size = depth // chunks
        self.block_chunks = nn.ModuleList(Chunk([Block(width, heads) for _ in range(size)]) for _ in range(chunks))
        self.head_nm = AdaptiveNorm(width, width)
        self.head = nn.Linear(width, 2 * bits)

    @property
    def blocks(self) -> list[Any]:
        chunks: Any = self.block_chunks
        return [block for chunk in chunks for block in chunk.module]

    def read(self, text: PackedText) -> TextContext:
        """Everything that depends on the text alone."""
        tokens = self.text_norm(text.tokens)
        start = self.text_proj_for_sos(text, tokens)
        source = text.through(self.text_proj_for_ca, tokens)
        return TextContext(start, [keys_and_values(b.ca, text, source) for b in self.blocks], text.mask)

    def embed(self, scale: int, inputs: Tensor | None, start: Tensor) -> Tensor:
        """Input tokens of a scale (B, h w, D).

        Args:
            inputs: the accumulated map at this scale (B, h w, bits); None for scale 0, which sees the text alone.
            start: pooled text (B, D).
        """
        x = start[:, None] + self.pos_start if inputs is None else self.word_embed(inputs)
        return x + self.lvl_embed.weight[scale]

    def predict(
        self,
        x: Tensor,
        context: TextContext,
        rotation: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        guidance: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Logits (R, n, bits, 2) float32 of embedded tokens x (R, n, D) at complex rotations (n, hd / 2).

        Args:
            guidance: (layer, c (n,)): behind that block both halves of the rows become c x_c + (1 - c) x_u of a token;
                where c is 1, the unconditional half stays what it is.
        """
        modulation = self.shared_ada_lin(context.start)
        for layer, (block, keys_values) in enumerate(zip(self.blocks, context.keys_values, strict=True)):
            x = block(x, modulation, keys_values, context.mask, rotation=rotation, mask=mask, cache=cache, layer=layer)
            if guidance is not None and layer == guidance[0]:
                c, (conditional, unconditional) = guidance[1][:, None], x.chunk(2)
                mixed = c * conditional + (1 - c) * unconditional
                x = torch.cat([mixed, torch.where(c == 1, unconditional, mixed)])
        return self.head(self.head_nm(x, context.start)).float().unflatten(-1, (self.bits, 2))

    def forward(
        self,
        text: PackedText,
        inputs: Tensor,
        tokens: list[int],
        rotation: Tensor,
        guidance: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Teacher forcing: logits of every bit given the true coarser scales.

        Args:
            inputs: (B, L - 1, bits), see ``BitQuantiser.unroll``.
            tokens: tokens of every scale.
            rotation: complex (L, hd / 2).
            guidance: as for ``predict``.

        Returns:
            float32 (B, L, bits, 2).
        """
        context = self.read(text)
        parts = inputs.split(tokens[1:], dim=1)
        embedded = [self.embed(k, None if k == 0 else parts[k - 1], context.start) for k in range(len(tokens))]
        mask = block_mask(tokens, inputs.device)
        return self.predict(torch.cat(embedded, dim=1), context, rotation, mask, guidance=guidance)
