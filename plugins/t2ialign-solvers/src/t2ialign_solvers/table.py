"""Solver tables of EPD: where the parallel probes lie and how their directions are weighted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from t2ialign import UsageError
from t2ialign.foreign import parse_json, read_object, shown, tensor_header
from t2ialign.spec.checkpoints import local_path
from t2ialign.storage import files
from t2ialign.storage.tensor_files import write_tensors
from t2ialign_solvers.config import Schedule

FORMAT = "t2ialign-solver-table/1"


@dataclass(frozen=True)
class SolverTable:
    """N intervals with K probes each, float32 or float64; a leading axis B gives every image a table of its own.

    Attributes:
        positions: r (..., N, K) in (0, 1): where in the interval, geometrically.
        weights: w (..., N, K), non-negative, each row sums to 1.
        scale_dir: c (..., N, K): factor of a probe's direction.
        scale_time: a (..., N, K): factor of the noise level that the network is told.
        probe_order: Adams-Bashforth order of the direction towards the probes; 1 is Euler's.
        schedule, rho: the time grid that the table was made for, see ``ScheduleConfig``.
        info: provenance; JSON values.
    """

    positions: Tensor
    weights: Tensor
    scale_dir: Tensor
    scale_time: Tensor
    probe_order: int = 1
    schedule: str = "native"
    rho: float | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: shapes differ, a position lies outside (0, 1), weights do not sum to 1, or the schedule
                is unknown.
        """
        shapes = {tuple(t.shape) for t in (self.positions, self.weights, self.scale_dir, self.scale_time)}
        if len(shapes) != 1 or self.positions.ndim not in (2, 3):
            raise ValueError(f"table tensors must share one shape (N, K) or (B, N, K), not {sorted(shapes)}")
        if not bool(((self.positions > 0) & (self.positions < 1)).all()):
            raise ValueError("positions must lie inside (0, 1)")
        if not torch.allclose(self.weights.sum(-1), torch.ones_like(self.weights[..., 0]), atol=1e-4):
            raise ValueError("the weights of every interval must sum to 1")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule '{self.schedule}' is none of {', '.join(get_args(Schedule))}")

    @property
    def steps(self) -> int:
        """Intervals N."""
        return self.positions.shape[-2]

    @property
    def points(self) -> int:
        """Probes K."""
        return self.positions.shape[-1]

    def rows(self, rows: slice | Tensor) -> SolverTable:
        """The tables of some images, for a table per image."""
        return self.like(**{name: getattr(self, name)[rows] for name in _TENSORS})

    def like(self, **tensors: Any) -> SolverTable:
        """Other numbers with the same settings."""
        return replace(self, **tensors)

    def save(self, path: Path) -> None:
        """Write a ``.json`` or ``.safetensors`` file; float32 values come back exactly."""
        settings: dict[str, Any] = {"format": FORMAT} | {name: getattr(self, name) for name in _SETTINGS}
        if path.suffix == ".safetensors":
            tensors = {name: getattr(self, name) for name in _TENSORS}
            write_tensors(path, tensors, {"table": json.dumps(settings)})
        else:
            files.write_json(path, settings | {name: getattr(self, name).tolist() for name in _TENSORS})


_TENSORS = ("positions", "weights", "scale_dir", "scale_time")
_SETTINGS = ("probe_order", "schedule", "rho", "info")


def load_table(reference: str) -> SolverTable:
    """A float32 table from a JSON or safetensors file, given by path or ``pkg:<package>/<path>``.

    Raises:
        UsageError: no such file, or not a table.
    """
    path = local_path(reference)
    if path is None or not path.is_file():
        raise UsageError(f"sampler.table = '{reference}': no such file")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_json(path)
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is not '{FORMAT}'")
        return SolverTable(**{name: content[name] for name in (*_TENSORS, *_SETTINGS)})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"sampler.table = '{reference}' is no solver table: {shown(error, 300)}") from error


def _read_json(path: Path) -> dict[str, Any]:
    content = read_object(path)
    return content | {name: torch.tensor(content[name], dtype=torch.float32) for name in _TENSORS if name in content}


def _read_safetensors(path: Path) -> dict[str, Any]:
    tensor_header(path)
    with safe_open(path, "pt") as stream:
        settings = parse_json((stream.metadata() or {})["table"])
        return settings | {name: stream.get_tensor(name) for name in _TENSORS}
