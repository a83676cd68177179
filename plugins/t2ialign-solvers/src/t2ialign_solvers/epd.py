"""Ensemble parallel direction: K probes per interval, evaluated together."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from t2ialign.batching import split
from t2ialign.paths import DiffusionPath
from t2ialign_solvers import schedules
from t2ialign_solvers.config import EpdConfig
from t2ialign_solvers.ode import Ode, OdeSampler, adams_bashforth, column
from t2ialign_solvers.table import SolverTable, load_table, symmetric_table


class Epd(OdeSampler):
    """EPD-Solver (arXiv 2507.14797) driven by a solver table."""

    Config = EpdConfig

    @cached_property
    def table(self) -> SolverTable:
        if self.config.table is None:
            return symmetric_table(self.config.steps, self.config.points, self.config.schedule, self.config.rho)
        return load_table(self.config.table)

    def knots(self, path: DiffusionPath) -> Tensor:
        table, to_zero = self.table, self.config.to_zero
        options = {"steps": table.steps + to_zero, "schedule": table.schedule, "rho": table.rho}
        return schedules.knots(self.config.model_copy(update=options), path)

    def integrate(self, ode: Ode, y: Tensor, knots: Tensor) -> Tensor:
        return integrate_table(ode, y, knots, self.table, self.config.probes_per_call)


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
    rows = (len(y), *table.positions.shape[-2:])
    r, weight, c, a = (
        tensor.to(y).expand(rows).unbind(1)
        for tensor in (table.positions, table.weights, table.scale_dir, table.scale_time)
    )
    history: list[Tensor] = []
    for n, (v, w) in enumerate(pairwise(knots)):
        history = [*history[-3:], ode(y, v)]
        towards = adams_bashforth(history, table.probe_order)[:, None]
        probe_v = w ** r[n] * v ** (1 - r[n])
        probes = y[:, None] + column(probe_v - v, towards) * towards
        told = a[n] * probe_v
        slopes = [ode.probe(probes[:, part], told[:, part]) for part in split(count, probes_per_call or count)]
        factors = column(weight[n] * c[n] * a[n], probes)
        y = y + (w - v) * (factors * torch.cat(slopes, 1)).sum(1)
    return y
