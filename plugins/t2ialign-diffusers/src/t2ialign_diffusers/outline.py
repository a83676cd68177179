"""A pipeline's networks from their configurations alone, on the meta device: shapes and sizes without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign.lora.adapter import matching
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_diffusers.config import QuantizationConfig
from t2ialign_diffusers.folder import read_json


def outline(folders: dict[str, Path], dtypes: dict[str, str]) -> Any:
    """Components by name, frozen, without weights.

    Args:
        folders: component -> its sub-folder in a checkpoint; the name of its class is in its config.json, or else in
            the checkpoint's model_index.json.
        dtypes: component -> dtype.
    """
    return SimpleNamespace(**{part: component(folder, part, dtypes[part]) for part, folder in folders.items()})


def text_networks(folder: Path, parts: Sequence[str], dtype: str) -> list[nn.Module]:
    """The networks among a checkpoint's text components."""
    networks = [part for part in parts if (folder / part / "config.json").is_file()]
    return [component(folder / part, part, dtype) for part in networks]


def rows_without_values(
    prompts: Sequence[str], shapes: Mapping[str, tuple[int, ...]], ragged: Mapping[str, str], dtype: str
) -> Conditioning:
    """A conditioning of the right shapes: every prompt is as long as can be."""
    tensors = {n: torch.empty(len(prompts), *s, dtype=getattr(torch, dtype), device="meta") for n, s in shapes.items()}
    for name, mask in ragged.items():
        tensors[mask] = torch.empty(len(prompts), shapes[name][0], dtype=torch.bool, device="meta")
    return Conditioning(tuple(prompts), tensors)


def size(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def resident(
    network: nn.Module, decoder: Any, quantization: QuantizationConfig | None, offload: str, units: Sequence[nn.Module]
) -> dict[str, int]:
    """Bytes of weights on the device: quantised ones at the size that they will have, of ``units`` that take turns the
    largest (``offload``), beside the decoder or in turn with it."""
    if quantization:
        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        chosen = set(linear) - set(matching(linear, quantization.skip))
        weights = [network.get_parameter(f"{name}.weight") for name in chosen]
        saved = sum(_saved(weight, quantization.kind) for weight in weights)
        return {"network, quantised": size(network) - saved, "decoder": size(decoder)}
    if offload == "none":
        return {"network": size(network), "decoder": size(decoder)}
    halves = [size(decoder.decoder), size(decoder.encoder)]
    outside = size(network) - sum(map(size, units))
    return {"largest part of network or decoder": max(*map(size, units), *halves), "outside the blocks": outside}


def _saved(weight: Tensor, kind: str) -> int:
    """Bytes that quantisation takes off a linear layer's weight, see ``quantize``."""
    rows, numbers = len(weight), weight.numel()
    left = numbers // 2 + numbers // 64 if kind == "nf4" else numbers + rows * weight.element_size()
    return int(weight.nbytes - left)


def component(folder: Path, part: str, dtype: str) -> nn.Module:
    settings = read_json(folder / "config.json")
    index = read_json(folder.parent / "model_index.json") if (folder.parent / "model_index.json").is_file() else {}
    name = settings.get("_class_name") or index.get(part, (None, None))[1] or settings["architectures"][0]
    with torch.device("meta"):
        if "_class_name" in settings or "model_type" not in settings:
            import diffusers

            network = getattr(diffusers, name).from_config(settings)
        else:
            import transformers

            network = getattr(transformers, name)(transformers.AutoConfig.from_pretrained(folder))
    return network.to(getattr(torch, dtype)).eval().requires_grad_(False)
