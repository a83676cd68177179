"""Turn a published solver table (.pkl or .npz) into t2ialign's JSON or safetensors, running none of its code.

    python -m t2ialign_ppo.convert_snapshot network-snapshot-000005.pkl table.json

A .pkl is a module, and the published loader executes source text from inside the file. Here that text is never looked
at: a restricted reader keeps the numbers and the settings and refuses every name that such a file has no use for. A
.npz holds the table's values; arrays of pickled objects in it are refused.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from t2ialign.errors import UsageError
from t2ialign.storage import pickles as safe_pickle
from t2ialign_solvers.starts import ascending
from t2ialign_solvers.table import SolverTable

CLASS = "EPD_predictor"
PARAMETERS = ("r_params", "weight_s", "scale_dir_params", "scale_time_params")
#: Settings that say where a table comes from and what it was made for.
PROVENANCE = ("backend", "guidance_rate", "sigma_min", "sigma_max", "flowmatch_mu", "flowmatch_shift")
GAP = 1e-6


def load_storage(data: bytes) -> Tensor:
    """Stands for torch's storage loader; torch's own restricted reader parses the bytes."""
    storage = torch.load(io.BytesIO(data), weights_only=True)
    tensor: Tensor = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    return tensor


def keep(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Stands for the reconstructor that would execute ``meta["module_src"]``."""
    if meta.get("class_name") != CLASS:
        raise UsageError(f"the file holds a '{meta.get('class_name')}' and no '{CLASS}'")
    return dict(meta["state"])


NAMES: dict[tuple[str, str], safe_pickle.Stand] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): keep,
    ("torch.storage", "_load_from_bytes"): load_storage,
    ("torch.nn.modules.activation", "Sigmoid"): safe_pickle.Shell,
    ("torch.nn.modules.activation", "Softmax"): safe_pickle.Shell,
}


def read_table(file: Path) -> SolverTable:
    """The table of a published file, ``.npz`` or a pickle.

    Raises:
        UsageError: it cannot be read, names something that is not allowed, or holds something else.
    """
    read = from_arrays if file.suffix == ".npz" else from_pickle
    try:
        with file.open("rb") as stream:
            return read(stream)
    except OSError as error:
        raise UsageError(f"{file}: {error}") from error
    except (*safe_pickle.ERRORS, BadZipFile) as error:
        raise UsageError(f"{file} cannot be read as a solver table: {type(error).__name__}: {error}") from error


def from_pickle(stream: BinaryIO) -> SolverTable:
    """The module's stored parameters as a table."""
    state = safe_pickle.RestrictedUnpickler(stream, "a solver table", NAMES).load()["model"]
    return published_mapping({name: state["_parameters"][name] for name in PARAMETERS}, state)


def from_arrays(stream: BinaryIO) -> SolverTable:
    """Values: ``r`` and ``weight`` (N, K), perhaps ``scale_dir`` and ``scale_time``; every other array is a setting."""
    with np.load(stream, allow_pickle=False) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    content = dict.fromkeys(("scale_dir", "scale_time"), np.ones_like(content["r"])) | content
    positions, weights, scale_dir, scale_time = (
        torch.from_numpy(content.pop(name)).double() for name in ("r", "weight", "scale_dir", "scale_time")
    )
    settings = {name: value.item() for name, value in content.items()}
    return _table(positions, weights / weights.sum(-1, keepdim=True), scale_dir, scale_time, settings)


def published_mapping(parameters: Mapping[str, Tensor], settings: Mapping[str, Any]) -> SolverTable:
    """Stored parameters (N, K) as a table: sigmoid positions, softmax weights, scales in 1 +- their range.

    Rows are put in ascending order, as the published loader does.
    """
    positions = torch.sigmoid(parameters["r_params"].float())
    weights = torch.softmax(parameters["weight_s"].float(), -1)
    direction = _scales(parameters["scale_dir_params"].float(), settings["scale_dir"])
    time = _scales(parameters["scale_time_params"].float(), settings["scale_time"])
    if settings.get("fcn"):
        direction[-1] = 1.0
    return _table(positions, weights, direction, time, settings)


def _table(
    positions: Tensor, weights: Tensor, scale_dir: Tensor, scale_time: Tensor, settings: Mapping[str, Any]
) -> SolverTable:
    tensors = sanitise(positions, weights, scale_dir, scale_time)
    positions, weights, scale_dir, scale_time = (part.float() for part in tensors)
    order = int(settings["max_order"]) if settings.get("sampler_stu") == "ipndm" else 1
    info = {name: settings[name] for name in PROVENANCE if settings.get(name) is not None}
    if settings.get("afs"):
        info["afs"] = True
    return SolverTable(
        positions,
        weights,
        scale_dir,
        scale_time,
        probe_order=order,
        schedule=settings["schedule_type"],
        rho=float(settings["schedule_rho"]),
        info=info,
    )


def sanitise(
    positions: Tensor, weights: Tensor, scale_dir: Tensor, scale_time: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows by ascending position, at least ``GAP`` apart and inside (0, 1); all (N, K)."""
    order = positions.argsort(-1)
    positions, weights, scale_dir, scale_time = (
        tensor.gather(-1, order) for tensor in (positions, weights, scale_dir, scale_time)
    )
    return ascending(positions, GAP, GAP), weights, scale_dir, scale_time


def _scales(raw: Tensor, bound: float | None) -> Tensor:
    bound = bound or 0.0
    return 2 * bound * torch.sigmoid(raw / 2) + 1 - bound


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: read, check, write."""
    parser = argparse.ArgumentParser(prog="python -m t2ialign_ppo.convert_snapshot", description=__doc__.split("\n")[0])
    parser.add_argument("snapshot", type=Path, help="the published .pkl or .npz")
    parser.add_argument("output", type=Path, help="file to write: .json or .safetensors")
    options = parser.parse_args(arguments)
    try:
        table = read_table(options.snapshot)
    except UsageError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    table.save(options.output)
    print(f"{table.steps} intervals, {table.points} probes in {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
