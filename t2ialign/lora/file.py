"""LoRA files: written in the layout that diffusers reads, and loaded where no pipeline does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from t2ialign.config import LoraConfig
from t2ialign.errors import UsageError
from t2ialign.lora.adapter import ADAPTER, Adapter
from t2ialign.lora.reading import FILE as FILE
from t2ialign.lora.reading import PEFT_CONFIG, PEFT_FILE, PEFT_PREFIX, check_fit, read
from t2ialign.lora.reading import component_file as component_file
from t2ialign.storage import files
from t2ialign.storage.tensor_files import write_tensors

Header = Mapping[str, str]


def load_lora_file(module: nn.Module, file: Path | str, prefix: str = "transformer", name: str = ADAPTER) -> Adapter:
    """Attach peft layers for exactly the modules in the file, and fill them.

    Args:
        module: the network.
        file: safetensors with names "<prefix>.<module path>.lora_A.weight" and "….lora_B.weight", scale folded into B.
        prefix: component name in the file.
        name: peft's name of the adapter.

    Raises:
        UsageError: no such file, other names, or modules and shapes that the network does not have.
    """
    tensors = read(Path(file))
    if stray := [key for key in tensors if not re.fullmatch(rf"{re.escape(prefix)}\..+\.lora_[AB]\.weight", key)]:
        raise UsageError(f"{file}: '{stray[0]}' is not of the form '{prefix}.<module>.lora_A.weight'")
    own = {key.removeprefix(f"{prefix}."): tensor for key, tensor in tensors.items()}
    check_fit(Path(file), module, own)
    return attach(module, own, name=name)


def attach(module: nn.Module, tensors: Mapping[str, Tensor], name: str = ADAPTER) -> Adapter:
    """A LoRA of given factors, "<module path>.lora_A.weight" and "….lora_B.weight"; ranks follow from them."""
    ranks = ranks_of(tensors)
    adapter = Adapter(module, LoraConfig(rank=max(ranks.values())), list(ranks), ranks=ranks, name=name)
    adapter.load(tensors)
    return adapter


def ranks_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Module path -> rank."""
    ending = ".lora_A.weight"
    return {name.removesuffix(ending): a.shape[0] for name, a in tensors.items() if name.endswith(ending)}


def write_loras(adapter: Adapter, prefix: str, folder: Path, header: Header | None = None) -> None:
    """The network's LoRA, and one file beside it for every other component that has layers."""
    if isinstance(adapter.module, nn.ModuleDict):
        for component in adapter.module:
            file = FILE if component == prefix else component_file(component)
            write_lora(adapter, component, folder / file, f"{component}.", header)
    else:
        write_lora(adapter, prefix, folder / FILE, header=header)


def write_lora(adapter: Adapter, prefix: str, path: Path, inside: str = "", header: Header | None = None) -> None:
    """One safetensors file, keys "<prefix>.<module>.lora_A.weight", scale folded into B.

    Only of the modules whose paths start with ``inside``, which ``prefix`` replaces.
    The header says alpha = rank for loaders that read it; loaders that do not assume just that.

    Args:
        header: further metadata.
    """
    own = inner(adapter.folded(), inside)
    settings = {f"{prefix}.{key}": value for key, value in peft_settings(own, adapter.targets).items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings), **(header or {})}
    write_tensors(path, {f"{prefix}.{name}": tensor for name, tensor in own.items()}, metadata)


def write_peft(tensors: Mapping[str, Tensor], folder: Path, base_model: str, header: Header | None = None) -> None:
    """A folder that ``PeftModel.from_pretrained(network, folder)`` loads.

    Args:
        tensors: names without a component's prefix, scale folded into B.
        base_model: goes into the settings.
    """
    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        **peft_settings(tensors, list(ranks_of(tensors))),
    }
    files.write_json(folder / PEFT_CONFIG, settings)
    write_tensors(
        folder / PEFT_FILE,
        {PEFT_PREFIX + name: tensor for name, tensor in tensors.items()},
        {"format": "pt", **(header or {})},
    )


def inner(tensors: Mapping[str, Tensor], inside: str) -> dict[str, Tensor]:
    """The tensors of a component, without its prefix."""
    return {name.removeprefix(inside): tensor for name, tensor in tensors.items() if name.startswith(inside)}


def peft_settings(tensors: Mapping[str, Tensor], targets: list[str]) -> dict[str, Any]:
    """Rank and alpha = rank in PEFT's words, with patterns for layers of another rank than the most."""
    ranks = ranks_of(tensors)
    most = max(ranks.values(), key=list(ranks.values()).count)
    other = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != most}
    settings: dict[str, Any] = {"r": most, "lora_alpha": most, "target_modules": targets}
    return settings | ({"rank_pattern": other, "alpha_pattern": other} if other else {})
