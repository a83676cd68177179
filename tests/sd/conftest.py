"""Tiny pipelines with random weights of the real classes, saved as checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ["<pad>", "<unk>", "<bos>", "<eos>", "a", "red", "blue", "green", "circle", "square", "and", "above"]


CHAT = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}assistant :"


def tokenizer(length: int = 16, chat: str | None = None) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=length,
        chat_template=chat,
    )


def clip(projected: bool = False, length: int = 16) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=length,
        projection_dim=32,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(WORDS),
        d_model=width,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def kl_vae(scale: float, shift: float | None = None, quant: bool = True, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 8],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **options,
    )


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            **options,
        }
    )


def xl_unet() -> Any:
    return unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """build(family, scheduler) -> folder of a saved pipeline; each is built once."""
    folders: dict[tuple[str, str], Path] = {}

    def make(family: str, scheduler: Any) -> Path:
        key = (family, repr(scheduler))
        if key not in folders:
            torch.manual_seed(0)
            folders[key] = tmp_path_factory.mktemp("checkpoints") / family
            pipeline(family, scheduler).save_pretrained(folders[key])
        return folders[key]

    return make


def pipeline(family: str, scheduler: Any) -> Any:
    import diffusers

    if family in ("sd", "sd-lcm"):
        return diffusers.StableDiffusionPipeline(
            tokenizer=tokenizer(),
            text_encoder=clip(),
            unet=unet(time_cond_proj_dim=16 if family == "sd-lcm" else None),
            vae=kl_vae(0.18215),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    if family == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            tokenizer=tokenizer(),
            text_encoder=clip(),
            tokenizer_2=tokenizer(),
            text_encoder_2=clip(projected=True),
            unet=xl_unet(),
            vae=kl_vae(0.13025, latents_mean=[0.3, -0.2, 0.1, 0.0], latents_std=[0.5, 1.5, 0.9, 1.2]),
            scheduler=scheduler,
            add_watermarker=False,
        )
    if family.startswith("pixart"):
        transformer = diffusers.PixArtTransformer2DModel(
            sample_size=128 if family == "pixart-1024" else 8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            use_additional_conditions=family == "pixart-1024",
        )
        sigma = family == "pixart-sigma"
        return (diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline)(
            tokenizer=tokenizer(),
            text_encoder=t5(),
            transformer=transformer.eval(),
            vae=kl_vae(0.13025 if sigma else 0.18215),
            scheduler=scheduler,
        )
    if family == "sd3":
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
            pos_embed_max_size=16,
        )
        return diffusers.StableDiffusion3Pipeline(
            tokenizer=tokenizer(77),
            text_encoder=clip(projected=True, length=77),
            tokenizer_2=tokenizer(77),
            text_encoder_2=clip(projected=True, length=77),
            tokenizer_3=tokenizer(),
            text_encoder_3=t5(64),
            transformer=transformer,
            vae=kl_vae(1.5305, 0.0609),
            scheduler=scheduler,
        )
    if family.startswith("flux2"):
        return flux2(scheduler, distilled=family == "flux2-distilled")
    if family == "qwen-image":
        return qwen_image(scheduler)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=family == "flux-dev",
    )
    return diffusers.FluxPipeline(
        tokenizer=tokenizer(77),
        text_encoder=clip(length=77),
        tokenizer_2=tokenizer(),
        text_encoder_2=t5(),
        transformer=transformer,
        vae=kl_vae(0.3611, 0.1159),
        scheduler=scheduler,
    )


def telling(network: Any) -> Any:
    """With weights so large that prompts and guidance show in the images."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return network.eval()


def flux2(scheduler: Any, distilled: bool) -> Any:
    """With 27 layers of text encoder, of which the pipeline reads the last."""
    import diffusers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(WORDS),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=27,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            tie_word_embeddings=True,
        )
    )
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    return diffusers.Flux2KleinPipeline(
        tokenizer=tokenizer(512, CHAT),
        text_encoder=text_encoder.eval(),
        transformer=telling(transformer),
        vae=vae.eval(),
        scheduler=scheduler,
        is_distilled=distilled,
    )


def qwen_image(scheduler: Any) -> Any:
    import diffusers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    text_encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[-0.5, 0.0, 0.25, 0.5],
        latents_std=[2.0, 1.0, 1.5, 0.5],
    )
    return diffusers.QwenImagePipeline(
        tokenizer=tokenizer(2048),
        text_encoder=text_encoder.eval(),
        transformer=telling(transformer),
        vae=vae.eval(),
        scheduler=scheduler,
    )


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An embedding cache of this session's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2IALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
