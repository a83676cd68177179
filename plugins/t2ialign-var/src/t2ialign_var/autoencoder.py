"""The convolutional encoder and decoder of VQGAN's family (arXiv 2012.09841), as VAR and Infinity use them.

Module names are those of released checkpoints. ``Layout`` holds what differs between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """Sizes of an encoder and its decoder.

    Attributes:
        z_channels: channels of the features.
        ch: channels at full resolution.
        ch_mult: multiples of ``ch``, one per level; each level but the last halves the resolution.
        num_res_blocks: residual blocks per encoder level; the decoder has one more.
        attention: whether the coarsest level and the middle have attention.
        conv, norm: make a convolution (in, out, kernel size, stride, padding) and a normalisation (channels).
    """

    z_channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attention: bool
    conv: Callable[..., nn.Module]
    norm: Callable[[int], nn.Module]

    @property
    def channels(self) -> list[int]:
        return [self.ch * multiple for multiple in self.ch_mult]


class ResBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))))))."""

    def __init__(self, layout: Layout, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = layout.norm(inputs)
        self.conv1 = layout.conv(inputs, outputs, 3, 1, 1)
        self.norm2 = layout.norm(outputs)
        self.conv2 = layout.conv(outputs, outputs, 3, 1, 1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else layout.conv(inputs, outputs, 1, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """x + single-head attention over all positions."""

    def __init__(self, layout: Layout, channels: int) -> None:
        super().__init__()
        self.norm = layout.norm(channels)
        self.qkv = layout.conv(channels, 3 * channels, 1, 1, 0)
        self.proj_out = layout.conv(channels, channels, 1, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, dim=-1)  # each (B, HW, C)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.mT.unflatten(-1, x.shape[-2:]))


class Level(nn.Module):
    """The blocks of one resolution."""

    def __init__(self, layout: Layout, inputs: int, outputs: int, blocks: int, attention: bool) -> None:
        super().__init__()
        sizes = [inputs] + [outputs] * (blocks - 1)
        self.block = nn.ModuleList(ResBlock(layout, size, outputs) for size in sizes)
        self.attn = nn.ModuleList(AttnBlock(layout, outputs) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        return x


class Downsample(nn.Module):
    """Half the resolution: zero-pad right and bottom by one, 3x3 convolution with stride 2."""

    def __init__(self, layout: Layout, channels: int) -> None:
        super().__init__()
        self.conv = layout.conv(channels, channels, 3, 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbour, 3x3 convolution."""

    def __init__(self, layout: Layout, channels: int) -> None:
        super().__init__()
        self.conv = layout.conv(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class EncoderLevel(Level):
    """A level, and unless it is the last one the step down to the next."""

    def __init__(self, layout: Layout, inputs: int, outputs: int, last: bool) -> None:
        super().__init__(layout, inputs, outputs, layout.num_res_blocks, layout.attention and last)
        self.downsample = nn.Identity() if last else Downsample(layout, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(super().forward(x))


class DecoderLevel(Level):
    """A level, and unless it is the finest one the step up to the next."""

    def __init__(self, layout: Layout, inputs: int, outputs: int, last: bool, finest: bool) -> None:
        super().__init__(layout, inputs, outputs, layout.num_res_blocks + 1, layout.attention and last)
        self.upsample = nn.Identity() if finest else Upsample(layout, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(super().forward(x))


class Middle(nn.Module):
    """The blocks at the coarsest resolution between encoder (or decoder) levels and features."""

    def __init__(self, layout: Layout, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(layout, channels, channels)
        self.attn_1 = AttnBlock(layout, channels) if layout.attention else nn.Identity()
        self.block_2 = ResBlock(layout, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to features (B, z, H / s, W / s)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        channels = layout.channels
        sizes = enumerate(zip([layout.ch, *channels[:-1]], channels, strict=True), start=1)
        self.conv_in = layout.conv(3, layout.ch, 3, 1, 1)
        self.down = nn.ModuleList(EncoderLevel(layout, a, b, last=i == len(channels)) for i, (a, b) in sizes)
        self.mid = Middle(layout, channels[-1])
        self.norm_out = layout.norm(channels[-1])
        self.conv_out = layout.conv(channels[-1], layout.z_channels, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features (B, z, h, w) to images (B, 3, s h, s w) of about [-1, 1]; ``up[i]`` is the level of ``down[i]``."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        channels = layout.channels
        sizes = enumerate(zip([*channels[1:], channels[-1]], channels, strict=True), start=1)
        self.conv_in = layout.conv(layout.z_channels, channels[-1], 3, 1, 1)
        self.mid = Middle(layout, channels[-1])
        self.up = nn.ModuleList(
            DecoderLevel(layout, a, b, last=i == len(channels), finest=i == 1) for i, (a, b) in sizes
        )
        self.norm_out = layout.norm(channels[0])
        self.conv_out = layout.conv(channels[0], 3, 3, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def to_images(pixels: Tensor) -> Tensor:
    """A decoder's output to images in [0, 1], float32."""
    return torch.clamp(pixels.float(), -1, 1) / 2 + 0.5
