"""From released files to modules: strict names and shapes, no code from a file, one clear error."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from t2ialign import UsageError, places

M = TypeVar("M", bound=nn.Module)


def read_tensors(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Tensors of a ``.pth`` state dict, a safetensors file, or a folder of safetensors shards with their index.

    Args:
        path: the file or folder.
        entry: in a ``.pth`` with more than weights, the key that holds them.

    Raises:
        UsageError: missing, truncated, damaged, or a pickle with more than tensors in it.
    """
    if not path.exists():
        raise UsageError(f"checkpoint has no {path.name} (looked in {path.parent})")
    if path.is_dir():
        return _read_shards(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path} is damaged, or holds more than tensors and is not loaded for safety") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UsageError(f"{path} is truncated or damaged; fetch it again") from error
    if entry is not None and isinstance(content, dict) and entry in content:
        content = content[entry]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"{path} is no state dict: names to tensors")
    return content


def _read_shards(folder: Path) -> dict[str, Tensor]:
    indices = places.listed(folder, "*.safetensors.index.json")
    if len(indices) != 1:
        raise UsageError(f"{folder} needs exactly one *.safetensors.index.json, it has {len(indices)}")
    try:
        placed: dict[str, str] = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{indices[0]} is damaged; fetch it again") from error
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(placed.values())):
        tensors |= read_tensors(folder / name)
    if absent := placed.keys() - tensors.keys():
        raise UsageError(f"{folder}: its shards lack {min(absent)} and {len(absent) - 1} more")
    return tensors


def fill(
    module: M,
    tensors: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype = torch.float32,
    half_precision: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> M:
    """Give a module built on the meta device its weights, and freeze it for inference.

    Args:
        module: on the meta device.
        tensors: its whole state, by name.
        source: the file, for messages.
        dtype: for the parts whose names start with one of ``half_precision``; the others are float32.
        ignored: regular expressions of names in the file that hold nothing to load.

    Raises:
        UsageError: missing or unexpected names, other shapes.
    """
    wanted = {name: value.shape for name, value in module.state_dict().items()}
    given = {name: value for name, value in tensors.items() if not any(re.search(p, name) for p in ignored)}
    shapes = {name: value.shape for name, value in given.items()}
    faults = {
        "missing": sorted(wanted.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(shapes[name])} for {tuple(wanted[name])}"
            for name in sorted(wanted.keys() & shapes.keys())
            if shapes[name] != wanted[name]
        ],
    }
    if any(faults.values()):
        report = "; ".join(f"{len(names)} {fault}, first {names[0]}" for fault, names in faults.items() if names)
        raise UsageError(f"{source} does not fit {type(module).__name__}: {report}")
    stored = {
        name: value.to(dtype if name.startswith(tuple(half_precision)) else torch.float32)
        for name, value in given.items()
    }
    module.load_state_dict(stored, assign=True)
    return module.eval().requires_grad_(False)


def read_sizes(path: Path, *tables: str) -> dict[str, dict[str, Any]]:
    """Hyper-parameters of a checkpoint of one's own: the named tables of its ``config.json``.

    Raises:
        UsageError: no JSON, or a table is missing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {table: dict(content[table]) for table in tables}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} must have the tables {' and '.join(tables)}") from error


def check_depth(tensors: Mapping[str, Tensor], block: str, depth: int, source: str, option: str) -> None:
    """Compare the number of transformer blocks before names are compared, since the remedy is known.

    Args:
        block: regular expression of a block's prefix.
        option: the key of the spec that decides the depth.

    Raises:
        UsageError: they differ.
    """
    found = len({match[0] for name in tensors if (match := re.match(block, name))})
    if found != depth:
        raise UsageError(f"{source} has {found} blocks, the model has {depth}: set {option} to the checkpoint's")
