"""Weights in open_clip's layout as transformers' CLIPModel names them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_RENAMED = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
#: open_clip multiplies from the right.
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, transpose and split; keys that open_clip's CLIP does not have stay as they are."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in _TRANSPOSED:
            converted[_TRANSPOSED[key]] = value.T.contiguous()
        elif block := _BLOCK.fullmatch(key):
            converted |= _block(key, value, *block.groups())
        else:
            converted[_RENAMED.get(key, key)] = value
    return converted


def _block(key: str, value: Tensor, visual: str | None, layer: str, name: str, kind: str) -> dict[str, Tensor]:
    prefix = f"{'vision' if visual else 'text'}_model.encoder.layers.{layer}"
    if name == "attn.in_proj":
        thirds = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{third}.{kind}": part.contiguous() for third, part in thirds}
    return {f"{prefix}.{_IN_BLOCK[name]}.{kind}": value} if name in _IN_BLOCK else {key: value}
