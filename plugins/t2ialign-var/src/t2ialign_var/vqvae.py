"""VAR's tokenizer: encoder, multi-scale quantiser, decoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from t2ialign_var.autoencoder import Decoder, Encoder, Layout, to_images
from t2ialign_var.quantiser import MultiScaleQuantiser

#: Hyper-parameters of the released vae_ch160v4096z32.
RELEASED: dict[str, Any] = {"codes": 4096, "z_channels": 32, "ch": 160, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2}


class VQVAE(nn.Module):
    """Images to tokens and back.

    Args:
        patch_nums: side of every scale, coarse to fine.
        codes: size of the codebook.
        z_channels: channels of a code.
        ch, ch_mult, num_res_blocks: see ``autoencoder.Layout``.
        norm_groups: groups of every normalisation.
        phis: convolutions shared by the scales.

    Attributes:
        half_precision: parts that may be stored in 16 bits; the codebook and what accumulates stay float32.
    """

    half_precision = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

    def __init__(
        self,
        patch_nums: Sequence[int],
        codes: int,
        z_channels: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        norm_groups: int = 32,
        phis: int = 4,
    ) -> None:
        super().__init__()
        norm = partial(nn.GroupNorm, norm_groups, eps=1e-6)
        layout = Layout(z_channels, ch, tuple(ch_mult), num_res_blocks, attention=True, conv=nn.Conv2d, norm=norm)
        self.encoder = Encoder(layout)
        self.decoder = Decoder(layout)
        self.quantize = MultiScaleQuantiser(codes, z_channels, tuple(patch_nums), phis)
        self.quant_conv = nn.Conv2d(z_channels, z_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 3, padding=1)
        self.image_side = patch_nums[-1] * 2 ** (len(ch_mult) - 1)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to features before quantisation (B, z, P, P)."""
        pixels = (2 * images - 1).to(self.quant_conv.weight.dtype)
        return self.quant_conv(self.encoder(pixels)).float()

    def decode(self, features: Tensor) -> Tensor:
        """Quantised features (B, z, P, P) to images (B, 3, H, W) in [0, 1], float32."""
        return to_images(self.pixels(features))

    def pixels(self, features: Tensor) -> Tensor:
        """The decoder's raw output, about [-1, 1]."""
        return self.decoder(self.post_quant_conv(features.to(self.post_quant_conv.weight.dtype)))
