"""Solver tables of EPD: where the parallel probes lie and how their directions are weighted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ialign import UsageError
from t2ialign.checkpoints import local_path

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
            ValueError: shapes differ, a position lies outside (0, 1), or weights do not sum to 1.
        """
        shapes = {tuple(t.shape) for t in (self.positions, self.weights, self.scale_dir, self.scale_time)}
        if len(shapes) != 1 or self.positions.ndim not in (2, 3):
            raise ValueError(f"table tensors must share one shape (N, K) or (B, N, K), not {sorted(shapes)}")
        if not bool(((self.positions > 0) & (self.positions < 1)).all()):
            raise ValueError("positions must lie inside (0, 1)")
        if not torch.allclose(self.weights.sum(-1), torch.ones_like(self.weights[..., 0]), atol=1e-4):
            raise ValueError("the weights of every interval must sum to 1")

    @property
    def steps(self) -> int:
        """Intervals N."""
        return self.positions.shape[-2]

    @property
    def points(self) -> int:
        """Probes K."""
        return self.positions.shape[-1]

    def save(self, path: Path) -> None:
        """Write JSON."""
        content: dict[str, Any] = {"format": FORMAT} | {name: getattr(self, name) for name in _SETTINGS}
        content |= {name: getattr(self, name).tolist() for name in _TENSORS}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        temporary.replace(path)


_TENSORS = ("positions", "weights", "scale_dir", "scale_time")
_SETTINGS = ("probe_order", "schedule", "rho", "info")


def load_table(reference: str) -> SolverTable:
    """A table from a JSON file, given by path or ``pkg:<package>/<path>``.

    Raises:
        UsageError: no such file, or not a table.
    """
    path = local_path(reference)
    if path is None or not path.is_file():
        raise UsageError(f"sampler.table = '{reference}': no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is not '{FORMAT}'")
        values: dict[str, Any] = {name: content[name] for name in _SETTINGS}
        values |= {name: torch.tensor(content[name], dtype=torch.float32) for name in _TENSORS}
        return SolverTable(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"sampler.table = '{reference}' is no solver table: {error}") from error


def symmetric_table(
    steps: int, points: int, schedule: str = "native", rho: float | None = None, spread: float = 0.33
) -> SolverTable:
    """The usual start: probes symmetric around the geometric middle, equal weights, no scales.

    r_k = 1/2 + (k - (K - 1) / 2) spread, kept inside (0, 1) for many probes.
    """
    spread = min(spread, 0.98 / max(points - 1, 1))
    offsets = torch.arange(points) - (points - 1) / 2
    positions = (0.5 + offsets * spread).expand(steps, points).clone()
    ones = torch.ones_like(positions)
    return SolverTable(positions, ones / points, ones, ones.clone(), schedule=schedule, rho=rho)
