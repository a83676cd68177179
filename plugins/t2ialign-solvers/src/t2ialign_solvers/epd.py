"""Ensemble parallel direction: K probes per interval, evaluated together."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from t2ialign.tensors.batching import split
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_solvers import schedules
from t2ialign_solvers.config import EpdConfig
from t2ialign_solvers.ode import Ode, OdeSampler, adams_bashforth, column
from t2ialign_solvers.starts import arithmetic_table, symmetric_table
from t2ialign_solvers.table import SolverTable, load_table


class Epd(OdeSampler):
    """EPD-Solver (arXiv 2507.14797) driven by a solver table."""

    Config = EpdConfig

    @cached_property
    def table(self) -> SolverTable | None:
        """The given table; None for a start table, which may depend on the path."""
        return None if self.config.table is None else load_table(self.config.table)

    def with_table(self, table: SolverTable) -> Epd:
        """The same sampler with another table, or one table per image."""
        other = type(self)(self.config, self.device)
        other.table = table
        return other

    def table_on(self, path: DiffusionPath) -> SolverTable:
        """The table that sampling on a path uses."""
        if self.table is not None:
            return self.table
        config = self.config
        start = symmetric_table(config.steps, config.points, config.schedule, config.rho)
        if config.start == "symmetric":
            return start
        knots = self.grid(path, start)[: config.steps + 1]
        return arithmetic_table(knots, config.points, config.schedule, config.rho)

    def knots(self, path: DiffusionPath) -> Tensor:
        return self.grid(path, self.table_on(path))

    def grid(self, path: DiffusionPath, table: SolverTable) -> Tensor:
        """The table's N + 1 positive knots, and 0 behind them for ``to_zero`` and on a native grid.

        A native grid that ends at 0 is the one of N + 1 steps: its last step, often a long one, is that to 0.
        """
        options = {"steps": table.steps + 1, "schedule": table.schedule, "rho": table.rho, "to_zero": True}
        knots = schedules.knots(self.config.model_copy(update=options), path)
        if knots[-1] > 0:
            knots = torch.cat(
                [schedules.knots(self.config.model_copy(update=options | {"steps": table.steps}), path), torch.zeros(1)]
            )
        return knots if self.config.to_zero or table.schedule == "native" else knots[:-1]

    def integrate(self, ode: Ode, y: Tensor, knots: Tensor) -> Tensor:
        return integrate_table(ode, y, knots, self.table_on(ode.path), self.config.probes_per_call)


def integrate_table(
    ode: Ode, y: Tensor, knots: Tensor, table: SolverTable, probes_per_call: int | None = None
) -> Tensor:
    """y + (w - v) sum_k weight_k c_k d_k over every interval [v, w], with directions d_k at K probes.

    Probe k lies at v_k = w^r_k v^(1 - r_k), reached along the direction at v; the network is told a_k v_k, and
    d_k = a_k d(y_k, a_k v_k) is its (y_k - x0) / v_k.

    Args:
        ode: of B rows.
        y: (B, ...).
        knots: (N + 1,) descending, positive.
        table: N intervals; shared, or one per row.
        probes_per_call: memory chunk; default all K.
    """
    count = table.points
    # Numbers of the whole table at once, (N, B or 1, K): inside the loop a small tensor costs as much as a large one.
    r, weight, c, a = (
        tensor.to(y).view(-1, *tensor.shape[-2:]).transpose(0, 1)
        for tensor in (table.positions, table.weights, table.scale_dir, table.scale_time)
    )
    v, w = (part.to(y.device).view(-1, 1, 1) for part in (knots[:-1], knots[1:]))
    probe_v = w**r * v ** (1 - r)
    told = (a * probe_v).expand(-1, len(y), -1)
    reach, factors = (column(values, y[None, None]) for values in (probe_v - v, (w - v) * weight * c * a))
    history: list[Tensor] = []
    for n, v_n in enumerate(knots[:-1]):
        history = [*history[-3:], ode(y, v_n)]
        probes = y[:, None] + reach[n] * adams_bashforth(history, table.probe_order)[:, None]
        slopes = [ode.probe(probes[:, part], told[n][:, part]) for part in split(count, probes_per_call or count)]
        y = y + (factors[n] * torch.cat(slopes, 1)).sum(1)
    return y
