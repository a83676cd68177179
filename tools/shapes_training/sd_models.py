"""The tiny Stable Diffusion models, built from the real diffusers and transformers classes."""

from __future__ import annotations

import math

from diffusers import AutoencoderKL
from torch import nn

SD_LATENT_CHANNELS = 4
POSTERIOR_STD = 0.1
"""Fixed width of the autoencoder's posterior, and the noise that its decoder is trained with."""


def build_sd_autoencoder() -> AutoencoderKL:
    """A 0.23 M autoencoder in the layout of Stable Diffusion: 32x32 pixels to 4 channels of 8x8.

    The posterior has a constant standard deviation: the layer that would predict it is zero.
    """
    channels = (16, 32, 32)
    model = AutoencoderKL(
        latent_channels=SD_LATENT_CHANNELS,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=32,
        scaling_factor=1.0,
    )
    moments = model.encoder.conv_out
    nn.init.zeros_(moments.weight[SD_LATENT_CHANNELS:])
    nn.init.constant_(moments.bias[SD_LATENT_CHANNELS:], 2 * math.log(POSTERIOR_STD))
    return model
