"""Binary spherical quantisation over a ladder of scales (arXiv 2412.04431, section 3.2).

Bits are (B, L, n) in {0, 1}, all scales one after another, row-major. With ``patchify`` the autoencoder's grid is twice
as fine as the transformer's, and a token holds the bits of 2 x 2 cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from t2ialign_infinity.ladders import Ladder
from t2ialign_var.layers import first_scales


class BitQuantiser:
    """Between bits and feature maps (B, d, H, W); it has no parameters.

    Args:
        channels: d; a code vector is (2 bit - 1) / sqrt(d).
        ladder: (h, w) of every scale in tokens.
        patchify: whether a token is 2 x 2 cells.
    """

    def __init__(self, channels: int, ladder: Ladder, patchify: bool) -> None:
        self.channels = channels
        self.ladder = ladder
        self.cells = 2 if patchify else 1

    @property
    def tokens(self) -> list[int]:
        return [h * w for h, w in self.ladder]

    def grid(self, scale: int) -> tuple[int, int]:
        """(height, width) of a scale in cells of the autoencoder."""
        h, w = self.ladder[scale]
        return h * self.cells, w * self.cells

    def empty(self, batch: int, device: torch.device | str = "cpu") -> Tensor:
        """The accumulated map before the first scale."""
        return torch.zeros(batch, self.channels, *self.grid(-1), device=device)

    def to_map(self, scale: int, tokens: Tensor) -> Tensor:
        """(B, h w, n) per token to (B, d, H, W) per cell."""
        return F.pixel_shuffle(tokens.mT.unflatten(-1, self.ladder[scale]), self.cells)

    def to_tokens(self, features: Tensor) -> Tensor:
        """(B, d, H, W) per cell to (B, h w, n) per token."""
        return F.pixel_unshuffle(features, self.cells).flatten(2).mT

    def contribution(self, scale: int, bits: Tensor) -> Tensor:
        """What a scale's bits (B, h w, n) add to the map, (B, d, H, W) at full size."""
        codes = self.to_map(scale, (2.0 * bits - 1) / self.channels**0.5)
        return _resize(codes, self.grid(-1))

    def at_scale(self, scale: int, features: Tensor) -> Tensor:
        """The map as the transformer's input at a scale: (B, h w, n). Bilinear, not area: as in training."""
        return self.to_tokens(_resize(features, self.grid(scale)))

    def steps(self, features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Quantise a map scale by scale; yields each scale's bits and the map accumulated so far."""
        accumulated = torch.zeros_like(features)
        for scale in range(len(self.ladder)):
            residual = features - accumulated
            if scale < len(self.ladder) - 1:
                residual = F.interpolate(residual, size=self.grid(scale), mode="area")
            bits = (self.to_tokens(residual) > 0).to(torch.uint8)
            accumulated = accumulated + self.contribution(scale, bits)
            yield bits, accumulated

    def unroll(self, bits: Tensor) -> tuple[Tensor, Tensor]:
        """The map that bits (B, L, n) stand for, and the transformer's inputs of all scales but the first on the way.

        Args:
            bits: of all scales, or of the first ones.

        Returns:
            Map (B, d, H, W); inputs (B, L - 1, n).
        """
        accumulated = self.empty(len(bits), bits.device)
        inputs = []
        for scale, part in enumerate(bits.split(first_scales(self.tokens, bits.shape[1]), dim=1)):
            if scale:
                inputs.append(self.at_scale(scale, accumulated))
            accumulated = accumulated + self.contribution(scale, part)
        nothing = accumulated.new_empty(len(bits), 0, bits.shape[2])
        return accumulated, torch.cat([nothing, *inputs], dim=1)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear")
