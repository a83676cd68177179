"""Solver tables that nobody has trained: where a search for better ones begins."""

from __future__ import annotations

import torch
from torch import Tensor

from t2ialign_solvers.table import SolverTable

GAP = 1e-4  #: least distance between probes, and to the ends of the interval


def published_table(
    steps: int,
    points: int,
    schedule: str = "native",
    rho: float | None = None,
    *,
    centre: float = 0.5,
    spread: float = 0.33,
    first_weight: float | None = None,
    weight_slope: float = 0.0,
) -> SolverTable:
    """The initialiser of the published code: the same row for every interval.

    r_k = centre + (k - (K - 1) / 2) spread and w_k proportional to first_weight + (k - (K - 1) / 2) weight_slope. A
    single probe alternates between centre - spread and centre + spread.
    """
    offsets = torch.arange(points, dtype=torch.float64) - (points - 1) / 2
    if points == 1:
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(steps)[:steps, None]
        positions = centre + sign * spread
    else:
        positions = (centre + offsets * spread).expand(steps, points)
    weights = ((1 / points if first_weight is None else first_weight) + offsets * weight_slope).clamp(min=1e-6)
    positions = ascending(positions.clamp(GAP, 1 - GAP)).float()
    ones = torch.ones_like(positions)
    return SolverTable(
        positions, (weights / weights.sum()).float().expand_as(ones), ones, ones, schedule=schedule, rho=rho
    )


def symmetric_table(steps: int, points: int, schedule: str = "native", rho: float | None = None) -> SolverTable:
    """The published start for two or three probes; one lies in the geometric middle, more move together."""
    if points == 1:
        return published_table(steps, 1, schedule, rho, spread=0.0)
    return published_table(steps, points, schedule, rho, spread=min(0.33, 0.98 / (points - 1)))


def arithmetic_table(knots: Tensor, points: int, schedule: str = "native", rho: float | None = None) -> SolverTable:
    """Probes at k / (K + 1) of every interval, equal weights: second-order accurate, which geometric middles are not.

    v_k = v + k / (K + 1) (w - v) is r_k = log(v_k / v) / log(w / v).

    Args:
        knots: (N + 1,) descending, positive: the grid that the table will run on.
    """
    knots = knots.double()
    v, w = knots[:-1, None], knots[1:, None]
    fractions = torch.arange(1, points + 1, dtype=torch.float64) / (points + 1)
    positions = (torch.log1p(fractions * (w / v - 1)) / torch.log(w / v)).float()
    ones = torch.ones_like(positions)
    return SolverTable(positions, ones / points, ones, ones, schedule=schedule, rho=rho)


def ascending(positions: Tensor, gap: float = GAP, first: float | None = None) -> Tensor:
    """Move positions (..., K), from left to right, until they ascend with at least ``gap`` between them and to 1.

    Args:
        first: the least first position; default 2 gaps.
    """
    count = positions.shape[-1]
    least = torch.full_like(positions[..., 0], 2 * gap if first is None else first)
    columns = []
    for k in range(count):
        most = torch.full_like(least, 1 - gap * (count - k))
        columns.append(torch.minimum(torch.maximum(positions[..., k], least), most))
        least = columns[-1] + gap
    return torch.stack(columns, -1)


def levers(table: SolverTable, knots: Tensor) -> Tensor:
    """lambda_n = sum_k w_k (v - v_k) / (v - w) of every interval (N,); a second-order table has 1/2 everywhere."""
    v, w = knots.to(table.positions)[:-1, None], knots.to(table.positions)[1:, None]
    probes = v ** (1 - table.positions) * w**table.positions
    return (table.weights * (v - probes) / (v - w)).sum(-1)
