"""The tiny models, built from the real diffusers and transformers classes."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderDC, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Gemma2Config,
    Gemma2Model,
)

from shapes_training.workdir import read_tensors, write_tensors
from t2ialign_shapes.tokenizer import BOS, EOS, MAX_LENGTH, PAD, VOCABULARY, build_tokenizer

LATENT_CHANNELS = 8
LATENT_SIZE = 8
CLIP_SIZE = 32
GUIDANCE_SCALE = 4.5
"""The pipeline's default; a distilled input here, not classifier-free guidance."""

_TOKEN_IDS = {
    "pad_token_id": VOCABULARY.index(PAD),
    "bos_token_id": VOCABULARY.index(BOS),
    "eos_token_id": VOCABULARY.index(EOS),
}


def build_autoencoder() -> AutoencoderDC:
    """A 0.1 M deep-compression autoencoder: 32x32 pixels to 8 channels of 8x8, no attention."""
    channels = (16, 32, 32)
    return AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=1.0,
    )


class SanaSprint(nn.Module):
    """The trained part of a tiny Sana Sprint: text encoder and transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = Gemma2Model(
            Gemma2Config(
                vocab_size=len(VOCABULARY),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                query_pre_attn_scalar=16,
                max_position_embeddings=64,
                sliding_window=64,
                **_TOKEN_IDS,
            )
        )
        self.transformer = SanaTransformer2DModel(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_attention_heads=4,
            attention_head_dim=24,
            num_layers=5,
            num_cross_attention_heads=4,
            cross_attention_head_dim=24,
            cross_attention_dim=96,
            caption_channels=64,
            mlp_ratio=2.0,
            sample_size=LATENT_SIZE,
            patch_size=1,
            # Positions from sines and cosines; the default, none, learns far more slowly here.
            interpolation_scale=1.0,
            guidance_embeds=True,
            guidance_embeds_scale=0.1,
            qk_norm="rms_norm_across_heads",
            timestep_scale=1000.0,
        )
        self.tokenizer = build_tokenizer()

    def forward(self, noise: Tensor, prompts: list[str]) -> Tensor:
        """Generate scaled latents in one step.

        At the last time of the TrigFlow path, t = pi/2, the sample is the noise itself and the
        clean latents over sigma_data are noise - F, so training is regression of noise - F.

        Args:
            noise: float32 [B, 8, 8, 8], unit Gaussian.

        Returns:
            float32 [B, 8, 8, 8], what the pipeline hands to the decoder times its scaling factor.
        """
        embeds, mask = self.encode(prompts)
        batch = len(noise)
        prediction = self.transformer(
            noise,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            guidance=torch.full((batch,), GUIDANCE_SCALE * 0.1),
            timestep=torch.ones(batch),
            return_dict=False,
        )[0]
        return noise - prediction

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Embed prompts exactly as `SanaSprintPipeline.encode_prompt` without instruction does."""
        tokens = self.tokenizer(
            [prompt.lower().strip() for prompt in prompts],
            padding="max_length",
            max_length=MAX_LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"]
        return self.text_encoder(tokens["input_ids"], attention_mask=mask)[0], mask


def build_clip() -> CLIPModel:
    """A 0.6 M CLIP for 32x32 pictures in patches of 4."""
    projection = 64
    layers = {
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
        "projection_dim": projection,
    }
    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "max_position_embeddings": MAX_LENGTH,
        **layers,
        **_TOKEN_IDS,
    }
    vision = {
        "image_size": CLIP_SIZE,
        "patch_size": 4,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        **layers,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=projection,
            logit_scale_init_value=2.3,
        )
    )


def save_pipeline(folder: Path, sprint: SanaSprint, autoencoder: AutoencoderDC) -> None:
    """Write a complete `SanaSprintPipeline` folder, weights in half precision."""
    pipeline = SanaSprintPipeline(
        tokenizer=sprint.tokenizer,
        text_encoder=sprint.text_encoder.eval(),
        vae=autoencoder.eval(),
        transformer=sprint.transformer.eval(),
        scheduler=SCMScheduler(prediction_type="trigflow", sigma_data=0.5),
    )
    pipeline.save_pretrained(folder)
    halve(folder)


def save_clip(folder: Path, clip: CLIPModel) -> None:
    """Write a complete CLIP folder, weights in half precision."""
    clip.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    size = {"height": CLIP_SIZE, "width": CLIP_SIZE}
    processor = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder)
    halve(folder)


def halve(folder: Path) -> None:
    """Round the weight files to float16: half the size; loaders still give float32.

    The configs keep saying float32, which is the dtype the models are meant to run in.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = {name: value.half() for name, value in read_tensors(path).items()}
        write_tensors(path, tensors, metadata={"format": "pt"})


def count_parameters(module: nn.Module) -> int:
    """Number of trained numbers in a module."""
    return sum(parameter.numel() for parameter in module.parameters())
