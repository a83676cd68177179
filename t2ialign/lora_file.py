"""Exported LoRA files for networks that no diffusers pipeline loads them into."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from t2ialign.config import LoraConfig
from t2ialign.errors import UsageError
from t2ialign.lora import Adapter


def load_lora_file(module: nn.Module, file: Path | str, prefix: str = "transformer") -> Adapter:
    """Attach peft layers for exactly the modules in the file, and fill them.

    Args:
        module: the network.
        file: safetensors with names "<prefix>.<module path>.lora_A.weight" and "….lora_B.weight", scale folded into B.
        prefix: component name in the file.

    Raises:
        UsageError: no such file, other names, or modules and shapes that the network does not have.
    """
    try:
        tensors = load_file(file)
    except (FileNotFoundError, SafetensorError) as error:
        raise UsageError(f"no readable LoRA at {file}: {error}") from error
    if stray := [name for name in tensors if not re.fullmatch(rf"{re.escape(prefix)}\..+\.lora_[AB]\.weight", name)]:
        raise UsageError(f"{file}: '{stray[0]}' is not of the form '{prefix}.<module>.lora_A.weight'")
    own = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}
    paths = sorted({name.rpartition(".lora_")[0] for name in own})
    if absent := set(paths) - {name for name, _ in module.named_modules()}:
        raise UsageError(f"{file} is for another model: this {type(module).__name__} has no '{min(absent)}'")
    ranks = {tensor.shape[0] for name, tensor in own.items() if name.endswith("lora_A.weight")}
    adapter = Adapter(module, LoraConfig(rank=max(ranks)), paths)
    adapter.load(own)
    return adapter
