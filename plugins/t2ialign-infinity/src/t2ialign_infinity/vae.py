"""Infinity's autoencoder: VAR's layout without attention."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from t2ialign_var.autoencoder import Decoder, Encoder, Layout, to_images


class Conv(nn.Module):
    """A convolution under the name ".conv", as in released files."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Norm(nn.Module):
    """A group norm under the name ".norm", with 32 groups, or 24 where channels are no multiple of 32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(24 if channels % 32 else 32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class BitVAE(nn.Module):
    """Images to features and back; the features' signs are the bits.

    Args:
        bits: feature channels d.
        ch, ch_mult, num_res_blocks: see ``t2ialign_var.autoencoder.Layout``.
        patchify: whether 2 x 2 cells make one token of the transformer (no difference here).
    """

    half_precision = ("encoder.", "decoder.")

    def __init__(self, bits: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, patchify: bool = False) -> None:
        super().__init__()
        layout = Layout(bits, ch, tuple(ch_mult), num_res_blocks, attention=False, conv=Conv, norm=Norm)
        self.encoder = Encoder(layout)
        self.decoder = Decoder(layout)
        self.stride = 2 ** (len(ch_mult) - 1)
        self.patchify = patchify

    @property
    def dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to (B, d, H / stride, W / stride)."""
        return self.encoder((2 * images - 1).to(self.dtype)).float()

    def decode(self, features: Tensor) -> Tensor:
        """Quantised features to images (B, 3, H, W) in [0, 1], RGB, float32."""
        return to_images(self.decoder(features.to(self.dtype)))


_UNWRAPPED = re.compile(r"\b(conv_in|conv_out|conv1|conv2|nin_shortcut|(?:down|up)sample\.conv)(?=\.(?:weight|bias)$)")
_UNWRAPPED_NORM = re.compile(r"\b(norm1|norm2|norm_out)(?=\.(?:weight|bias)$)")


def wrapped_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of files without the wrappers: "conv_in.weight" becomes "conv_in.conv.weight"; others stay."""
    return {_UNWRAPPED_NORM.sub(r"\1.norm", _UNWRAPPED.sub(r"\1.conv", n)): value for n, value in tensors.items()}
