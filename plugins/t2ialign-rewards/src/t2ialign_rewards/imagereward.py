"""ImageReward v1.0 (Xu et al. 2023): BLIP's image tower, a BERT that looks at it, and an affine head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from t2ialign import checkpoints
from t2ialign.errors import UsageError
from t2ialign_rewards import weights
from t2ialign_rewards.affine_head import AffineHead
from t2ialign_rewards.clip import SETTINGS
from t2ialign_rewards.config import IMAGEREWARD_TOKENS, ImageRewardConfig
from t2ialign_rewards.network_reward import NetworkReward
from t2ialign_rewards.preprocess import Preprocess
from t2ialign_rewards.text import Tokenizer

FILES = ("ImageReward.safetensors", "ImageReward.pt")
#: The authors standardise with these; the checkpoint does not hold them.
MEAN, STD = 0.16717362830052426, 1.0333394966054072

_VISION_KEYS = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


class ImageRewardNetwork(nn.Module):
    """Images and prompts to standardised scores (B,)."""

    def __init__(
        self,
        vision: BlipVisionModel,
        text: BlipTextModel,
        head: AffineHead,
        tokenizer: Callable[[str], list[int]],
        preprocess: Preprocess,
    ) -> None:
        super().__init__()
        self.vision, self.text, self.head = vision, text, head
        self.tokenizer, self.preprocess = tokenizer, preprocess

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        image_tokens = self.vision(pixel_values=self.preprocess(images)).last_hidden_state
        ids, mask = self.tokenize(prompts, images.device)
        hidden = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=image_tokens).last_hidden_state[
            :, 0
        ]
        return (self.head(hidden) - MEAN) / STD

    def tokenize(self, prompts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and 0/1 mask, each (B, 35): a fixed length, so that a row does not depend on the others."""
        ids = torch.zeros(len(prompts), IMAGEREWARD_TOKENS, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            tokens = self.tokenizer(prompt)
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return ids.to(device), mask.to(device)


class ImageReward(NetworkReward):
    """ImageReward v1.0: human preference, about standard normal over generated images."""

    Config = ImageRewardConfig
    #: The sizes that the weights' shapes do not tell.
    vision_heads: ClassVar[int] = 16
    text_heads: ClassVar[int] = 12

    def load(self) -> ImageRewardNetwork:
        config: ImageRewardConfig = self.config
        file = weights.find_file(config.checkpoint, config.revision, FILES)
        vision_state, text_state, head_state = split_checkpoint(weights.read_tensors(file), str(file))
        try:
            vision_sizes = vision_config(vision_state, self.vision_heads)
            text_sizes = text_config(text_state, self.text_heads)
        except KeyError as error:
            raise UsageError(f"weights of {file} are not ImageReward's: no {error}") from error
        vision = weights.from_state(BlipVisionModel, vision_sizes, vision_state, config.dtype, str(file))
        text = weights.from_state(
            BlipTextModel, text_sizes, text_state, config.dtype, str(file), add_pooling_layer=False
        )
        tokenizer = Tokenizer.load(checkpoints.resolve(config.tokenizer, patterns=SETTINGS), IMAGEREWARD_TOKENS)
        preprocess = Preprocess(vision.config.image_size, config.resize, config.interpolation)
        return ImageRewardNetwork(vision, text, AffineHead.collapse(head_state, str(file)), tokenizer, preprocess)


def split_checkpoint(
    state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The released state dict as BlipVisionModel, BlipTextModel and head name it.

    Raises:
        UsageError: keys that belong to none of them.
    """
    vision: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, value in state.items():
        if key.startswith("blip.visual_encoder."):
            vision[_vision_key(key.removeprefix("blip.visual_encoder."))] = value
        elif key.startswith("blip.text_encoder."):
            text[key.removeprefix("blip.text_encoder.")] = value
        elif key.startswith("mlp."):
            head[key.removeprefix("mlp.")] = value
        elif not key.startswith(("blip.vision_proj.", "blip.text_proj.")):  # BLIP's contrastive heads, unused here
            unexpected.append(key)
    text.pop("embeddings.position_ids", None)
    weights.require_keys(source, (), unexpected)
    return vision, text, head


def _vision_key(key: str) -> str:
    if key.startswith("norm."):
        return f"post_layernorm.{key.removeprefix('norm.')}"
    for old, new in _VISION_KEYS:
        key = key.replace(old, new)
    return key


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def vision_config(state: Mapping[str, Tensor], heads: int) -> BlipVisionConfig:
    """Sizes from the weights' shapes."""
    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    side = round((state["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(state, "encoder.layers."),
        num_attention_heads=heads,
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )


def text_config(state: Mapping[str, Tensor], heads: int) -> BlipTextConfig:
    """Sizes from the weights' shapes. ``is_decoder`` gives every layer cross-attention; no mask becomes causal."""
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    options: dict[str, Any] = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "use_cache": False}
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_layers(state, "encoder.layer."),
        num_attention_heads=heads,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        is_decoder=True,
        **options,
    )
