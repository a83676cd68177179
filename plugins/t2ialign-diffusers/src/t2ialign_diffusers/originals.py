"""What original checkpoints call the layers of diffusers' networks, for the LoRA files of ComfyUI, Forge and kohya.

Only layers whose weights are the same numbers in both. Left out: modulations whose scale and shift changed places
(``norm_out`` of FLUX.1 and Stable Diffusion 3, ``norm1_context`` of the latter's last block).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from t2ialign.lora.reading import base_layer

Rule = tuple[str, str]  # pattern of a diffusers module, original name; "@n" says which rows of a fused layer

_FLUX: tuple[Rule, ...] = (
    *(
        (rf"transformer_blocks\.(\d+)\.attn\.to_{x}", rf"double_blocks_\1_img_attn_qkv@{i}")
        for i, x in enumerate("qkv")
    ),
    *(
        (rf"transformer_blocks\.(\d+)\.attn\.add_{x}_proj", rf"double_blocks_\1_txt_attn_qkv@{i}")
        for i, x in enumerate("qkv")
    ),
    (r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks_\1_img_attn_proj"),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks_\1_txt_attn_proj"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"double_blocks_\1_img_mlp_0"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2", r"double_blocks_\1_img_mlp_2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj", r"double_blocks_\1_txt_mlp_0"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.2", r"double_blocks_\1_txt_mlp_2"),
    (r"transformer_blocks\.(\d+)\.norm1\.linear", r"double_blocks_\1_img_mod_lin"),
    (r"transformer_blocks\.(\d+)\.norm1_context\.linear", r"double_blocks_\1_txt_mod_lin"),
    *(
        (rf"single_transformer_blocks\.(\d+)\.{module}", rf"single_blocks_\1_linear1@{i}")
        for i, module in enumerate((r"attn\.to_q", r"attn\.to_k", r"attn\.to_v", "proj_mlp"))
    ),
    (r"single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks_\1_linear2"),
    (r"single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks_\1_modulation_lin"),
)
_FLUX2: tuple[Rule, ...] = (
    *_FLUX[:8],  # the same attention
    (r"transformer_blocks\.(\d+)\.ff\.linear_in", r"double_blocks_\1_img_mlp_0"),
    (r"transformer_blocks\.(\d+)\.ff\.linear_out", r"double_blocks_\1_img_mlp_2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_in", r"double_blocks_\1_txt_mlp_0"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_out", r"double_blocks_\1_txt_mlp_2"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks_\1_linear1"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks_\1_linear2"),
)
_SD3: tuple[Rule, ...] = (
    *(
        (rf"transformer_blocks\.(\d+)\.{attn}\.to_{x}", rf"joint_blocks_\1_x_block_{attn}_qkv@{i}")
        for attn in ("attn", "attn2")
        for i, x in enumerate("qkv")
    ),
    *(
        (rf"transformer_blocks\.(\d+)\.attn\.add_{x}_proj", rf"joint_blocks_\1_context_block_attn_qkv@{i}")
        for i, x in enumerate("qkv")
    ),
    (r"transformer_blocks\.(\d+)\.(attn2?)\.to_out\.0", r"joint_blocks_\1_x_block_\2_proj"),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"joint_blocks_\1_context_block_attn_proj"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"joint_blocks_\1_x_block_mlp_fc1"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2", r"joint_blocks_\1_x_block_mlp_fc2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj", r"joint_blocks_\1_context_block_mlp_fc1"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.2", r"joint_blocks_\1_context_block_mlp_fc2"),
    (r"transformer_blocks\.(\d+)\.norm1\.linear", r"joint_blocks_\1_x_block_adaLN_modulation_1"),
)
_ZIMAGE: tuple[Rule, ...] = (
    *(
        (rf"((?:layers|noise_refiner|context_refiner)\.\d+\.attention)\.to_{x}", rf"\1_qkv@{i}")
        for i, x in enumerate("qkv")
    ),
    (r"((?:layers|noise_refiner|context_refiner)\.\d+\.attention)\.to_out\.0", r"\1_out"),
    (r"((?:layers|noise_refiner|context_refiner)\.\d+\.(?:feed_forward|adaLN_modulation)\..*)", r"\1"),
)
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _translate(path: str, rules: tuple[Rule, ...]) -> str | None:
    for pattern, name in rules:
        if match := re.fullmatch(pattern, path):
            return match.expand(name)
    return None


def _sdxl(path: str, width: int) -> str | None:
    """The blocks of both ways counted through; each has one more than the layers of a block: its change of size.

    Args:
        width: layers per block, and one.
    """
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", path):
        way, block, kind, layer, rest = match.groups()
        number = width * int(block) + int(layer) + (way == "down")
        side = {"down": "input_blocks", "up": "output_blocks"}[way]
        return f"{side}.{number}.{int(kind == 'attentions')}.{_RESNET.get(rest, rest)}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", path):
        kind, layer, rest = match.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(layer)}.{_RESNET.get(rest, rest)}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", path):
        return f"input_blocks.{width * int(match[1]) + width}.0.op"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", path):
        return f"output_blocks.{width * int(match[1]) + width - 1}.2.conv"
    return None


_NAMES: dict[str, Callable[[str], str | None]] = {
    "FluxTransformer2DModel": lambda path: _translate(path, _FLUX),
    "Flux2Transformer2DModel": lambda path: _translate(path, _FLUX2),
    "SD3Transformer2DModel": lambda path: _translate(path, _SD3),
    "ZImageTransformer2DModel": lambda path: _translate(path, _ZIMAGE),
}


def originals(network: nn.Module) -> dict[str, list[str]]:
    """Original name, with "_" between its parts -> the diffusers modules that its rows belong to, in order.

    Empty for a network whose LoRA files call layers as diffusers does, and for one that no other tool knows.
    """
    name = _NAMES.get(type(network).__name__)
    config = getattr(network, "config", {})
    if type(network).__name__ == "UNet2DConditionModel" and config.get("addition_embed_type") == "text_time":
        name = partial(_sdxl, width=config["layers_per_block"] + 1)
    if name is None:
        return {}
    found: dict[str, dict[int, str]] = {}
    for path, module in network.named_modules():
        if isinstance(base_layer(module), nn.Linear | nn.Conv2d) and (original := name(path)):
            original, _, part = original.replace(".", "_").partition("@")
            found.setdefault(original, {})[int(part or 0)] = path
    return {original: [parts[i] for i in sorted(parts)] for original, parts in found.items()}
