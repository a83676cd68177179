"""Multi-scale residual quantisation (VAR, arXiv 2404.02905, algorithms 1 and 2).

Feature maps are (B, C, P, P); the tokens of scale k are (B, p_k^2), row-major.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ialign_var.layers import first_scales


class Phi(nn.Conv2d):
    """phi(h) = (1 - r) h + r conv(h): corrects what up-sampling has lost."""

    def __init__(self, channels: int, share: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.share = share

    def forward(self, h: Tensor) -> Tensor:
        return torch.lerp(h, super().forward(h), self.share)


class SharedPhis(nn.Module):
    """A few phi for all scales; scale k takes the one whose tick is nearest to k / (K - 1)."""

    def __init__(self, channels: int, count: int, scales: int, share: float) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(channels, share) for _ in range(count))
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(margin, 1 - margin, count)
        # Scales half-way between two ticks fall as float64 rounds them, so this follows the original to the letter.
        self.chosen = [int(np.abs(ticks - k / max(scales - 1, 1)).argmin()) for k in range(scales)]

    def forward(self, scale: int, h: Tensor) -> Tensor:
        return self.qresi_ls[self.chosen[scale]](h)


class Step(NamedTuple):
    """One scale of ``MultiScaleQuantiser.steps``: its tokens (B, p^2) and the map (B, C, P, P) accumulated so far."""

    tokens: Tensor
    features: Tensor


class MultiScaleQuantiser(nn.Module):
    """A codebook applied to a pyramid of residuals.

    Args:
        codes: V rows of the codebook.
        channels: C.
        patch_nums: side p_k of every scale, coarse to fine; the last one is P.
        phis: shared phi convolutions.
        phi_share: r.
    """

    def __init__(
        self, codes: int, channels: int, patch_nums: tuple[int, ...], phis: int = 4, phi_share: float = 0.5
    ) -> None:
        super().__init__()
        self.patch_nums = patch_nums
        self.embedding = nn.Embedding(codes, channels)
        self.quant_resi = SharedPhis(channels, phis, len(patch_nums), phi_share)

    def empty(self, batch: int) -> Tensor:
        """The accumulated map before the first scale."""
        weight, side = self.embedding.weight, self.patch_nums[-1]
        return weight.new_zeros(batch, weight.shape[1], side, side)

    def contribution(self, scale: int, codes: Tensor) -> Tensor:
        """What code vectors (B, p^2, C) of a scale add to the map: phi(upsample(codes)), (B, C, P, P)."""
        p, full = self.patch_nums[scale], self.patch_nums[-1]
        h = codes.mT.unflatten(-1, (p, p))
        if p != full:
            h = F.interpolate(h, size=(full, full), mode="bicubic")
        return self.quant_resi(scale, h)

    def at_scale(self, scale: int, features: Tensor) -> Tensor:
        """A map (B, C, P, P) averaged down to a scale's side: (B, p^2, C)."""
        p = self.patch_nums[scale]
        if p != features.shape[-1]:
            features = F.interpolate(features, size=(p, p), mode="area")
        return features.flatten(2).mT

    def nearest(self, x: Tensor) -> Tensor:
        """Index of the nearest code of (B, n, C): int64 (B, n)."""
        codebook = self.embedding.weight
        distance = codebook.square().sum(1) - 2 * x @ codebook.T  # |x|^2 changes no minimum
        return distance.argmin(-1)

    def steps(self, features: Tensor) -> Iterator[Step]:
        """Quantise a map scale by scale (algorithm 1): each scale codes what the coarser ones left over."""
        accumulated = torch.zeros_like(features)
        for scale in range(len(self.patch_nums)):
            tokens = self.nearest(self.at_scale(scale, features - accumulated))
            accumulated = accumulated + self.contribution(scale, self.embedding(tokens))
            yield Step(tokens, accumulated)

    def encode(self, features: Tensor) -> Tensor:
        """Tokens of all scales, one after another: int64 (B, L)."""
        return torch.cat([step.tokens for step in self.steps(features)], dim=1)

    def unroll(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The map that tokens (B, L), or those of the first scales, stand for (algorithm 2), and the inputs on the way.

        Returns:
            Map (B, C, P, P), and inputs of all scales but the first (B, L - 1, C): the map before each scale, averaged
            down to that scale's side.
        """
        accumulated = self.empty(len(tokens))
        inputs = []
        sizes = first_scales([p * p for p in self.patch_nums], tokens.shape[1])
        for scale, part in enumerate(tokens.split(sizes, dim=1)):
            if scale:
                inputs.append(self.at_scale(scale, accumulated))
            accumulated = accumulated + self.contribution(scale, self.embedding(part))
        nothing = self.embedding.weight.new_empty(len(tokens), 0, self.embedding.weight.shape[1])
        return accumulated, torch.cat([nothing, *inputs], dim=1)
