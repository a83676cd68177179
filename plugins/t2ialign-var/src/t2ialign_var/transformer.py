"""VAR's transformer: predicts all tokens of a scale at once from the coarser scales (arXiv 2404.02905, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign_var.layers import (
    AdaptiveNorm,
    FeedForward,
    KeyValueCache,
    Modulation,
    SelfAttention,
    block_mask,
    first_scales,
    modulated_norm,
)

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def released(depth: int) -> dict[str, Any]:
    """Hyper-parameters of the released var_d<depth>."""
    return {
        "patch_nums": PATCH_NUMS_512 if depth == 36 else PATCH_NUMS_256,
        "codes": 4096,
        "code_channels": 32,
        "classes": 1000,
        "depth": depth,
        "width": 64 * depth,
        "heads": depth,
        "shared_modulation": depth == 36,
    }


class Block(nn.Module):
    """Self-attention and feed-forward, both modulated and gated by the class (AdaLN, arXiv 2212.09748)."""

    def __init__(self, width: int, heads: int, shared_modulation: bool, normalised: bool, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads, normalised)
        self.ffn = FeedForward(width, round(width * mlp_ratio))
        if shared_modulation:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.ada_lin = Modulation(width)

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """(g1, g2, s1, s2, b1, b2), each float32 (B, 1, C); ``condition`` is already modulation where it is shared."""
        rows = self.ada_gss + condition if hasattr(self, "ada_gss") else self.ada_lin(condition)
        return rows.float().unbind(2)

    def forward(self, x: Tensor, condition: Tensor, **attention: Any) -> Tensor:
        g1, g2, s1, s2, b1, b2 = self.modulation(condition)
        x = x + g1 * self.attn(modulated_norm(x, s1, b1), **attention)
        return x + g2 * self.ffn(modulated_norm(x, s2, b2))


class VarTransformer(nn.Module):
    """Logits of the next scale's tokens.

    Args:
        patch_nums: side of every scale, coarse to fine.
        codes: size V of the codebook.
        code_channels: channels of a code.
        classes: number of classes; class ``classes`` is the unconditional one.
        depth, width, heads, mlp_ratio: of the transformer.
        shared_modulation: one AdaLN for all blocks plus an offset each (the 512 px model).
        normalised: unit-length q and k.

    Attributes:
        half_precision: parts that may be stored in 16 bits; embeddings, the residual stream and the head stay float32.
    """

    half_precision = ("blocks.", "shared_ada_lin.")

    def __init__(
        self,
        patch_nums: Sequence[int],
        codes: int,
        code_channels: int,
        classes: int,
        depth: int,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        shared_modulation: bool = False,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        self.tokens = [p * p for p in patch_nums]
        self.classes = classes
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, sum(self.tokens), width))
        self.lvl_embed = nn.Embedding(len(patch_nums), width)
        self.word_embed = nn.Linear(code_channels, width)
        self.class_emb = nn.Embedding(classes + 1, width)
        self.shared_ada_lin = Modulation(width) if shared_modulation else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, heads, shared_modulation, normalised, mlp_ratio) for _ in range(depth))
        self.head_nm = AdaptiveNorm(width, width)
        self.head = nn.Linear(width, codes)

    def embed(self, scale: int, features: Tensor | None, condition: Tensor) -> Tensor:
        """Input tokens of a scale (B, p^2, C).

        Args:
            features: the accumulated map at this scale's side (B, p^2, code channels); None for scale 0, which sees
                the class alone.
            condition: class embeddings (B, C).
        """
        start = sum(self.tokens[:scale])
        place = self.lvl_embed.weight[scale] + self.pos_1LC[:, start : start + self.tokens[scale]]
        if features is None:
            return condition[:, None] + self.pos_start + place
        return self.word_embed(features) + place

    def predict(
        self, x: Tensor, condition: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Logits (B, n, V) float32 of embedded tokens x (B, n, C)."""
        modulation = self.shared_ada_lin(condition)
        for layer, block in enumerate(self.blocks):
            x = block(x, modulation, mask=mask, cache=cache, layer=layer)
        return self.head(self.head_nm(x, condition)).float()

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Teacher forcing: logits of every token given the true coarser scales.

        Args:
            labels: classes, int64 (B,).
            inputs: (B, L - 1, code channels), see ``MultiScaleQuantiser.unroll``; or those of the first scales.

        Returns:
            float32 (B, L, V).
        """
        condition, tokens = self.class_emb(labels), first_scales(self.tokens, 1 + inputs.shape[1])
        parts = inputs.split(tokens[1:], dim=1)
        embedded = [self.embed(k, None if k == 0 else parts[k - 1], condition) for k in range(len(tokens))]
        return self.predict(torch.cat(embedded, dim=1), condition, block_mask(tokens, labels.device))
