"""Sana Sprint checkpoints with random weights, for speed measurements without a network.

``tiny`` runs anywhere, ``mid`` has the proportions of the real model at an eighth of its width, ``full`` is the
1.6 B transformer and the f32 autoencoder of Sana_Sprint_1.6B_1024px. The text encoder is a stub of the right width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"heads": 4, "head": 24, "layers": 5, "cross": 4, "caption": 64, "channels": (32, 64), "latent": 8},
    "deep": {"heads": 4, "head": 8, "layers": 20, "cross": 4, "caption": 32, "channels": (32, 64), "latent": 8},
    "mid": {"heads": 18, "head": 32, "layers": 10, "cross": 6, "caption": 288, "channels": (32, 64, 128, 128)},
    "full": {"heads": 70, "head": 32, "layers": 20, "cross": 20, "caption": 2304, "channels": None},
}
WORDS = ["<pad>", "<unk>", "a", "red", "green", "blue", "circle", "square", "triangle"]
PROMPTS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "triangle")]


def write(folder: Path, size: str, dtype: torch.dtype) -> Path:
    """Save a SanaSprintPipeline of the given size into ``folder`` and return it."""
    from diffusers import AutoencoderDC, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

    torch.manual_seed(0)
    wanted = SIZES[size]
    width = wanted["heads"] * wanted["head"]
    latent = wanted.get("latent", 32)
    transformer = SanaTransformer2DModel(
        in_channels=latent,
        out_channels=latent,
        num_layers=wanted["layers"],
        num_attention_heads=wanted["heads"],
        attention_head_dim=wanted["head"],
        num_cross_attention_heads=wanted["cross"],
        cross_attention_head_dim=width // wanted["cross"],
        cross_attention_dim=width,
        caption_channels=wanted["caption"],
        sample_size=32 if size == "full" else 8,
        patch_size=1,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
    )
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", model_max_length=300
    )
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=wanted["caption"],
            intermediate_size=wanted["caption"],
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
    )
    pipeline = SanaSprintPipeline(
        tokenizer, text_encoder, AutoencoderDC(**autoencoder(wanted["channels"], latent)), transformer, SCMScheduler()
    )
    pipeline.to(dtype).save_pretrained(folder)
    return folder


def autoencoder(channels: tuple[int, ...] | None, latent: int) -> dict[str, Any]:
    """Settings of an AutoencoderDC; without channels those of dc-ae-f32c32-sana."""
    if channels is None:
        return {
            "latent_channels": latent,
            "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
            "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
            "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
            "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
            "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
            "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "decoder_norm_types": "rms_norm",
            "decoder_act_fns": "silu",
            "scaling_factor": 0.41407,
        }
    blocks = ("ResBlock",) * len(channels)
    return {
        "latent_channels": latent,
        "encoder_block_types": blocks,
        "decoder_block_types": blocks,
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
        "encoder_layers_per_block": (1,) * len(channels),
        "decoder_layers_per_block": (1,) * len(channels),
        "encoder_qkv_multiscales": ((),) * len(channels),
        "decoder_qkv_multiscales": ((),) * len(channels),
    }
