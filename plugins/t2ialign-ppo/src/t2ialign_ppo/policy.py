"""The policy: a small network from the number of an interval to the distribution of that interval's row."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet

from t2ialign_ppo.config import ScaleKind
from t2ialign_ppo.distributions import BoundedScales, LogNormalScales, Scales, TableDistribution
from t2ialign_solvers.table import SolverTable

#: A start row with a smaller part than this becomes the even row: a Dirichlet cannot be centred on an edge.
LEAST_PART = 1e-6
LEAST_ALPHA = 1e-5
LOG_STD_RANGE = (-7.0, 2.0)


class Block(nn.Module):
    """h + W SiLU(LayerNorm(h)) + b."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear(nn.functional.silu(self.layer_norm(h)))


class Policy(nn.Module):
    """log alpha = log alpha_start + change(n), and likewise for scales; the change is zero at first.

    In float64 on the CPU: its size is nothing beside the image model's, and so its numbers do not depend on the device.
    Parameter names are those of the published checkpoints.

    Args:
        start: the table (N, K) that the policy's mean is at first.
        concentration: sum of a Dirichlet's parameters; a weight of mean 1/2 has the standard deviation
            sqrt(1/4 / (concentration + 1)).
        scale_dir, scale_time: whether, and how, the scales are part of the policy.
        scale_std: standard deviation of a scale (of its logarithm if log-normal) around 1.
        scale_bound: R of bounded scales.
    """

    def __init__(
        self,
        start: SolverTable,
        concentration: float,
        *,
        scale_dir: ScaleKind = "none",
        scale_time: ScaleKind = "none",
        scale_std: float = 0.05,
        scale_bound: float = 0.2,
        width: int = 128,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.scale_kinds = {"dir": scale_dir, "time": scale_time}
        self.scale_bound = scale_bound
        bound_sum = (scale_bound / scale_std) ** 2 - 1  # a Beta in the middle of its range then has scale_std
        segments, weights = simplices(start)
        self.register_buffer("base_log_alpha_pos", (concentration * segments).log())
        self.register_buffer("base_log_alpha_weight", (concentration * weights).log())
        for name, scales in (("dir", start.scale_dir), ("time", start.scale_time)):
            scales = scales.double()
            match self.scale_kinds[name]:
                case "log-normal":
                    self.register_buffer(f"base_log_scale_{name}", scales.clamp(min=1e-6).log())
                    self.register_buffer(f"base_log_std_{name}", torch.full_like(scales, math.log(scale_std)))
                case "bounded":
                    part = ((scales - 1 + scale_bound) / (2 * scale_bound)).clamp(0.01, 0.99)
                    self.register_buffer(
                        f"base_log_alpha_{name}", (bound_sum * torch.stack([part, 1 - part], -1)).log()
                    )
        steps, points = start.steps, start.points
        used = sum(kind != "none" for kind in self.scale_kinds.values())
        self.widths = [points + 1, points] + [2 * points] * used
        self.step_embed = nn.Embedding(steps, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.output_linear = nn.Linear(width, sum(self.widths))
        nn.init.zeros_(self.output_linear.weight)
        nn.init.zeros_(self.output_linear.bias)
        self.double()

    def forward(self) -> TableDistribution:
        """The distribution of tables."""
        changes = self.output_linear(self.blocks(self.step_embed.weight)).split(self.widths, -1)
        return self._distribution(list(changes))

    @torch.no_grad()
    def start(self) -> TableDistribution:
        """The distribution before the first update, which the KL penalty refers to."""
        return self._distribution([self.step_embed.weight.new_zeros(1, width) for width in self.widths])

    def _distribution(self, changes: list[Tensor]) -> TableDistribution:
        segments, weights, *scales = changes
        remaining = iter(scales)
        return TableDistribution(
            Dirichlet(_alpha(self.get_buffer("base_log_alpha_pos"), segments)),
            Dirichlet(_alpha(self.get_buffer("base_log_alpha_weight"), weights)),
            *(self._scales(name, remaining) for name in ("dir", "time")),
        )

    def _scales(self, name: str, changes: Iterator[Tensor]) -> Scales | None:
        match self.scale_kinds[name]:
            case "log-normal":
                loc, log_std = next(changes).chunk(2, -1)
                return LogNormalScales(
                    self.get_buffer(f"base_log_scale_{name}") + loc,
                    (self.get_buffer(f"base_log_std_{name}") + log_std).clamp(*LOG_STD_RANGE),
                )
            case "bounded":
                base = self.get_buffer(f"base_log_alpha_{name}")
                return BoundedScales(_alpha(base, next(changes).unflatten(-1, (-1, 2))), self.scale_bound)
        return None


def simplices(table: SolverTable) -> tuple[Tensor, Tensor]:
    """Segments (N, K + 1) and weights (N, K) of a table, float64; rows on an edge of the simplex become even."""
    positions = table.positions.double()
    ends = (torch.zeros_like(positions[:, :1]), torch.ones_like(positions[:, :1]))
    return _inside(torch.cat([ends[0], positions, ends[1]], -1).diff(dim=-1)), _inside(table.weights.double())


def _inside(parts: Tensor) -> Tensor:
    edge = (parts <= LEAST_PART).any(-1, keepdim=True)
    parts = torch.where(edge, torch.ones_like(parts), parts)
    return parts / parts.sum(-1, keepdim=True)


def _alpha(base: Tensor, change: Tensor) -> Tensor:
    return (base + change).exp().clamp(min=LEAST_ALPHA)
