"""Turn the released MPS checkpoint into safetensors without running any of its code.

    python -m t2ialign_rewards.convert_mps MPS_overall_checkpoint.pth MPS_overall.safetensors

The file is a pickled module object. A pickle may name any function and call it; here the few class names that such a
module needs stand for an empty shell, the tensor constructors are our own, and every other name is refused.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from t2ialign.errors import UsageError
from t2ialign.storage import pickles as safe_pickle
from t2ialign_rewards.weights import require_keys

SHELL_MODULES = (
    "trainer.models.",
    "torch.nn.modules.",
    "torch._C._nn",
    "transformers.models.clip.",
    "transformers.activations",
)
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
TORCH_NAMES: dict[tuple[str, str], safe_pickle.Stand] = {
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
    **{("torch", name): getattr(torch, name) for name in ("float16", "bfloat16", "float32", "int64")},
}


class MpsUnpickler(safe_pickle.RestrictedUnpickler):
    """Reads the object of a torch archive, whose tensors lie beside it."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        stream = archive.open(f"{root}/data.pkl")
        super().__init__(stream, "an MPS model", TORCH_NAMES, SHELL_MODULES)
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isdigit():
            raise UsageError("the checkpoint has a storage of an unknown kind")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]


def named_tensors(module: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module's shell, by their dotted path."""
    state = getattr(module, "state", None)
    if not isinstance(state, dict):
        return
    for group in ("_parameters", "_buffers"):
        for name, value in state.get(group, {}).items():
            if isinstance(value, Tensor) and name != "position_ids":  # positions, counted anew by today's transformers
                yield prefix + name, value
    for name, child in state.get("_modules", {}).items():
        yield from named_tensors(child, f"{prefix}{name}.")


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """All tensors of the released checkpoint, by state-dict key.

    Raises:
        UsageError: it is no torch archive, names something that is not allowed, or is another model.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entry = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if entry is None:
                raise UsageError(f"{file} is no torch checkpoint: the archive has no data.pkl")
            module = MpsUnpickler(archive, entry.removesuffix("/data.pkl")).load()
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} is no torch checkpoint: {error}") from error
    except safe_pickle.ERRORS as error:
        raise UsageError(f"{file} cannot be read as a pickled MPS model: {type(error).__name__}: {error}") from error
    tensors = {key: value.clone() for key, value in named_tensors(module)}
    needed = {"model.logit_scale", "model.visual_projection.weight", "cross_model.layers.0.0.fn.to_q.weight"}
    foreign = {key for key in tensors if not key.startswith(("model.", "cross_model."))}
    require_keys(str(file), needed - tensors.keys(), foreign)
    return tensors


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: read, check, write."""
    parser = argparse.ArgumentParser(prog="python -m t2ialign_rewards.convert_mps", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="the released MPS_overall_checkpoint.pth")
    parser.add_argument("output", type=Path, help="file to write, for example MPS_overall.safetensors")
    options = parser.parse_args(arguments)
    try:
        tensors = read_checkpoint(options.checkpoint)
    except UsageError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    temporary = options.output.with_name(f".{options.output.name}.tmp")
    save_file(tensors, temporary, metadata={"source": options.checkpoint.name, "license": "MIT"})
    temporary.replace(options.output)
    print(f"{len(tensors)} tensors in {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
