"""LoRA files: written in the layout that diffusers reads, and read where no pipeline does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from t2ialign.config import LoraConfig
from t2ialign.errors import UsageError
from t2ialign.lora.adapter import Adapter

FILE = "pytorch_lora_weights.safetensors"


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


def write_loras(adapter: Adapter, prefix: str, folder: Path) -> None:
    """The network's LoRA, and one file beside it for every other component that has layers."""
    if isinstance(adapter.module, nn.ModuleDict):
        for component in adapter.module:
            file = FILE if component == prefix else component_file(component)
            write_lora(adapter, component, folder / file, inside=f"{component}.")
    else:
        write_lora(adapter, prefix, folder / FILE)


def component_file(component: str) -> str:
    """Name of the LoRA file of a component that no pipeline loads one into."""
    return f"{component}_lora_weights.safetensors"


def write_lora(adapter: Adapter, prefix: str, path: Path, inside: str = "") -> None:
    """One safetensors file, keys "<prefix>.<module>.lora_A.weight", scale folded into B.

    Only of the modules whose paths start with ``inside``, which ``prefix`` replaces.
    The header says alpha = rank for loaders that read it; loaders that do not assume just that.
    """
    tensors = {
        f"{prefix}.{name.removeprefix(inside)}": tensor.contiguous()
        for name, tensor in adapter.folded().items()
        if name.startswith(inside)
    }
    settings = {"r": adapter.config.rank, "lora_alpha": adapter.config.rank, "target_modules": adapter.targets}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"{prefix}.{key}": value for key, value in settings.items()}),
    }
    save_file(tensors, path, metadata=metadata)
