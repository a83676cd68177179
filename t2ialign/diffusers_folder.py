"""Checks of a checkpoint folder in the diffusers layout, before any weight is loaded. No torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from t2ialign import checkpoints
from t2ialign.errors import UsageError

#: What is fetched of a component: full-precision weights in one file or in shards, and everything that is no weight.
_FILES = ("*.json", "*.txt", "*.model", "*model.safetensors", "*model-*-of-*.safetensors")


def open_checkpoint(
    reference: str,
    revision: str | None,
    pipelines: Collection[str],
    components: Sequence[str],
    weightless: Collection[str] = (),
) -> Path:
    """The local folder of a diffusers checkpoint that one of ``pipelines`` can load.

    Args:
        reference: hub id, folder, or ``pkg:<package>/<path>``; only the named components are downloaded.
        revision: hub revision.
        pipelines: accepted classes in ``model_index.json``.
        components: sub-folders that must be there, each with complete safetensors weights if it holds a model.
        weightless: components of which only the configuration is used.

    Raises:
        UsageError: anything of that is missing, of another kind, or cut off.
    """
    patterns = [f"{part}/{file}" for part in components for file in (_FILES[:1] if part in weightless else _FILES)]
    folder = checkpoints.resolve(reference, revision, ["model_index.json", *patterns])
    where = f"checkpoint '{reference}'"
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"{where} is no diffusers checkpoint: it has no model_index.json")
    found = read_json(folder / "model_index.json").get("_class_name", "")
    if found not in pipelines:
        raise UsageError(f"{where} is a {found or 'nameless pipeline'}; this backend loads {' or '.join(pipelines)}")
    for part in components:
        if not any((folder / part).glob("*.json")):
            raise UsageError(f"{where} has no component '{part}'")
        if part not in weightless and (folder / part / "config.json").is_file():
            check_weights(folder / part, where)
    return folder


def check_weights(folder: Path, where: str) -> None:
    """Complain unless ``folder`` has safetensors weights, with every shard there in full length.

    Raises:
        UsageError: no weights, a missing shard, or a truncated file.
    """
    files = {file.name: file for file in folder.glob("*.safetensors")}
    if not files:
        raise UsageError(f"{where}: '{folder.name}' has no .safetensors weights (pickled weights are not loaded)")
    for index in folder.glob("*.safetensors.index.json"):
        if absent := sorted(set(read_json(index)["weight_map"].values()) - files.keys()):
            raise UsageError(f"{where}: '{folder.name}' lacks the shard {absent[0]}")
    for name, file in files.items():
        if not is_complete(file):
            raise UsageError(f"{where}: {folder.name}/{name} is truncated or damaged; fetch it again")


def is_complete(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            return False
        (length,) = struct.unpack("<Q", prefix)
        if 8 + length > size:
            return False
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UsageError: the file is no valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}") from error
