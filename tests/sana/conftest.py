"""A tiny SanaSprintPipeline with random weights of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ialign_sana.config import SanaSprintConfig
from t2ialign_sana.sprint import SanaSprint

WORDS = ["<pad>", "<unk>", "<bos>", "a", "red", "blue", "green", "circle", "square", "and", "above", "below"]


def components(sprint: bool) -> dict[str, Any]:
    """Tiny parts of a SanaSprintPipeline or a SanaPipeline, without the scheduler."""
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", model_max_length=16
    )
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
        qk_norm="rms_norm_across_heads" if sprint else None,
        guidance_embeds=sprint,
    )
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            max_position_embeddings=512,
            query_pre_attn_scalar=4,
            sliding_window=64,
        )
    )
    return {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": vae, "transformer": transformer}


@pytest.fixture(scope="session")
def sprint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import SanaSprintPipeline, SCMScheduler

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-sprint"
    SanaSprintPipeline(**components(sprint=True), scheduler=SCMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sana_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-sana"
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    SanaPipeline(**components(sprint=False), scheduler=scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty embedding cache."""
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make_backend(sprint_folder: Path) -> Callable[..., SanaSprint]:
    """A fresh backend; 32 x 32 pixels, since the stock pipeline insists on multiples of 32."""

    def make(**options: object) -> SanaSprint:
        options = {"checkpoint": str(sprint_folder), "dtype": "float32", "image_size": 32} | options
        return SanaSprint(SanaSprintConfig(**options))

    return make
