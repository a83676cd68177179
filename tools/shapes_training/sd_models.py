"""The tiny Stable Diffusion models, built from the real diffusers and transformers classes."""

from __future__ import annotations

import math

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel

from shapes_training.models import LATENT_SIZE, build_clip
from t2ialign_shapes.tokenizer import MAX_LENGTH, build_tokenizer

SD_LATENT_CHANNELS = 4
POSTERIOR_STD = 0.1
"""Fixed width of the autoencoder's posterior, and the noise that its decoder is trained with."""

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
"""The schedule of Stable Diffusion. Its signal-to-noise ratio stays positive at the last timestep,
as solvers that integrate over sigma or log SNR need it."""


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


class StableDiffusion(nn.Module):
    """The trained part of a tiny Stable Diffusion: text encoder and UNet, which predicts v.

    v = alpha eps - sigma x0, so that x0 = alpha x - sigma v with x = alpha x0 + sigma eps.
    """

    steps = 10
    guidance = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(build_clip().config.text_config)
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=SD_LATENT_CHANNELS,
            out_channels=SD_LATENT_CHANNELS,
            block_out_channels=(64, 96),
            layers_per_block=1,
            # Attention at 8x8 and not only at 4x4, where two objects may share a cell.
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=self.text_encoder.config.hidden_size,
            norm_num_groups=16,
            attention_head_dim=4,  # diffusers means the number of heads
            # The pooled text modulates every layer: cross-attention alone learns far more slowly.
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            resnet_time_scale_shift="scale_shift",
        )
        self.tokenizer = build_tokenizer()
        self.scheduler = build_scheduler(DDIMScheduler)

    def forward(self, noise: Tensor, prompts: list[str]) -> Tensor:
        """Generate scaled latents by DDIM with classifier-free guidance.

        Args:
            noise: float32 [B, 4, 8, 8], unit Gaussian.

        Returns:
            float32 [B, 4, 8, 8], what the pipeline hands to the decoder times its scaling factor.
        """
        embeds = self.encode([*prompts, *[""] * len(prompts)])
        self.scheduler.set_timesteps(self.steps)
        x = noise
        for timestep in self.scheduler.timesteps:
            both = self.unet(torch.cat([x, x]), timestep, encoder_hidden_states=embeds).sample
            conditional, unconditional = both.chunk(2)
            v = torch.lerp(unconditional, conditional, self.guidance)
            x = self.scheduler.step(v, timestep, x).prev_sample
        return x

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids int64 [B, MAX_LENGTH], as `StableDiffusionPipeline` makes them."""
        return self.tokenizer(
            prompts,
            padding="max_length",
            max_length=MAX_LENGTH,
            truncation=True,
            return_tensors="pt",
        )["input_ids"]

    def encode(self, prompts: list[str]) -> Tensor:
        """Embed prompts as `StableDiffusionPipeline` does: [B, MAX_LENGTH, 96]."""
        return self.text_encoder(self.tokenize(prompts))[0]


class StableDiffusionTurbo(StableDiffusion):
    """The same network, run for one step at the last timestep, as SD-Turbo is."""

    def forward(self, noise: Tensor, prompts: list[str]) -> Tensor:
        """Generate scaled latents in one step: x0 = alpha x - sigma v at x = sigma noise.

        This is what the pipeline computes with one trailing Euler step and no guidance.

        Args:
            noise: float32 [B, 4, 8, 8], unit Gaussian.

        Returns:
            float32 [B, 4, 8, 8], what the pipeline hands to the decoder times its scaling factor.
        """
        last = len(self.scheduler.alphas_cumprod) - 1
        alpha = self.scheduler.alphas_cumprod[last].sqrt()
        sigma = (1 - alpha**2).sqrt()
        x = sigma * noise
        v = self.unet(x, last, encoder_hidden_states=self.encode(prompts)).sample
        return alpha * x - sigma * v


def build_scheduler(kind: type) -> DDIMScheduler | EulerDiscreteScheduler:
    """A diffusers scheduler with the schedule of these models."""
    ends = {"set_alpha_to_one": True, "clip_sample": False} if kind is DDIMScheduler else {}
    return kind(**SCHEDULE, **ends)
