"""States on disk: a folder with tensors and JSON, which knows whether it is still what was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from t2ialign.errors import T2IAlignError
from t2ialign.storage import files
from t2ialign.tensors.state import State

TENSORS, VALUES = "state.safetensors", "state.json"


class Damaged(T2IAlignError):
    """A state that was written can no longer be read as it was."""


def write_state(folder: Path, step: int, state: State, **more: float) -> None:
    """Replace a folder by the state after a step, whole or not at all."""
    from t2ialign.storage.tensor_files import write_tensors

    with files.new_folder(folder) as new:
        write_tensors(new / TENSORS, state.tensors)
        known = {"step": step, "values": state.values, "digest": _digest(new / TENSORS), **more}
        (new / VALUES).write_text(json.dumps(known), encoding="utf-8")


def read_state(folder: Path) -> tuple[int, State]:
    """The step and the state of a folder.

    Raises:
        Damaged: a file is missing, cut, or not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        saved = json.loads((folder / VALUES).read_text(encoding="utf-8"))
        if saved.get("digest") not in (None, _digest(folder / TENSORS)):
            raise ValueError(f"{TENSORS} is not what was written")
        return saved["step"], State(load_file(folder / TENSORS), saved["values"])
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise Damaged(f"the checkpoint {folder} cannot be read: {error}") from error


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
