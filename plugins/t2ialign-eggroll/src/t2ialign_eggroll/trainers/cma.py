"""CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772) for small modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign_eggroll.noise import FullRank, Perturbation
from t2ialign_eggroll.shaping import Fitness
from t2ialign_eggroll.trainers.scoring import FitnessFunction
from t2ialign_eggroll.trainers.trainer import ESTrainer

#: Largest number of trained entries whose whole covariance is kept (a float64 matrix of 128 MB).
MOST = 4000


class CMAESTrainer(ESTrainer):
    """Members m + sigma s A z; the covariance A A^T follows the directions that score well, s the length of the path.

    For up to some hundreds of trained numbers, or ``MOST`` with patience: a generation costs O(N D^2), refreshing A
    O(D^3). With ``separable`` (sep-CMA-ES) the covariance is diagonal and any size is cheap, as with ``SNESTrainer``.
    Entries are in units of each parameter (``trainers.defaults``). A member without a finite score has weight 0.

    Args:
        population_size: default 4 + floor(3 ln D) for D trained numbers.
        separable: a diagonal covariance.
        active: bad members push the covariance away.
        csa_squared: compare the squared length of the path with its expectation.
        options: of ``ESTrainer``; the centre moves by the weighted mean itself, so there is no optimizer to choose.

    Attributes:
        step_size: s, 1 at the start.
        covariance: C (D, D), or (D,) if separable; float64 on the CPU, as all of the strategy's state.

    Raises:
        ValueError: too many parameters for a whole covariance, or an option that this strategy does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        population_size: int | None = None,
        separable: bool = False,
        active: bool = True,
        csa_squared: bool = False,
        **options: Any,
    ) -> None:
        own = ("antithetic", "shaping", "optimizer", "learning_rate", "step_rule", "scale", "rank", "group_size")
        if given := sorted(options.keys() & set(own)):
            raise ValueError(f"CMA-ES decides {given[0]} itself")
        size = max(1, sum(p.numel() for p in model.parameters() if p.requires_grad))
        if size > MOST and not separable:
            raise ValueError(
                f"CMA-ES keeps a covariance of {size:,} x {size:,} numbers; {MOST:,} x {MOST:,} are the most: take"
                " separable=True, or EggrollTrainer"
            )
        super().__init__(
            model,
            fitness_fn,
            population_size=4 + int(3 * math.log(size)) if population_size is None else population_size,
            rank=None,
            antithetic=False,
            scale="relative",
            shaping="centred-rank",
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
            **options,
        )
        self.size = sum(p.numel() for p in self.parameters.values())
        self.separable, self.csa_squared = separable, csa_squared
        self._constants(self.members.count, self.size, active)
        self.step_size = 1.0
        one = torch.ones if separable else torch.eye
        self.covariance = one(self.size, dtype=torch.float64)
        self.factor = one(self.size, dtype=torch.float64)
        self.path_sigma = torch.zeros(self.size, dtype=torch.float64)
        self.path_c = torch.zeros(self.size, dtype=torch.float64)

    def _constants(self, n: int, d: int, active: bool) -> None:
        """The tutorial's weights and rates for N members in D dimensions."""
        raw = math.log((n + 1) / 2) - torch.arange(1, n + 1, dtype=torch.float64).log()
        self.parents = n // 2
        good, bad = raw[: self.parents], raw[self.parents :]
        mu = self.mu_eff = (good.sum().square() / good.square().sum()).item()
        mu_bad = (bad.sum().square() / bad.square().sum().clamp(min=1e-300)).item()
        self.c_sigma = (mu + 2) / (d + mu + 3)
        self.damp = 1 + 2 * max(0.0, math.sqrt((mu - 1) / (d + 1)) - 1) + self.c_sigma
        if self.separable:
            self.c_c = (1 + 1 / d + mu / d) / (math.sqrt(d) + 1 / d + 2 * mu / d)
            self.c_1 = 1 / (d + 2 * math.sqrt(d) + mu / d)
            self.c_mu = (0.25 + mu + 1 / mu - 2) / (d + 4 * math.sqrt(d) + mu / 2)
        else:
            self.c_c = (4 + mu / d) / (d + 4 + 2 * mu / d)
            self.c_1 = min(1, n / 6) * 2 / ((d + 1.3) ** 2 + mu)
            self.c_mu = min(1 - self.c_1, 2 * (0.25 + mu - 2 + 1 / mu) / ((d + 2) ** 2 + mu))
        alpha = min(1 + self.c_1 / self.c_mu, 1 + 2 * mu_bad / (mu + 2), (1 - self.c_mu - self.c_1) / (d * self.c_mu))
        away = alpha * bad / bad.abs().sum().clamp(min=1e-300) if active else torch.zeros_like(bad)
        self.rank_weights = torch.cat([good / good.sum(), away])
        self.chi = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d**2))  # E |z|
        self.refresh_every = max(1, int(1 / (10 * d * (self.c_1 + self.c_mu))))

    def normals(self, members: Sequence[int]) -> Tensor:
        """z of some members of this generation, float64 (n, D) on the CPU."""
        drawn = super().sample_perturbations(members)
        return torch.cat([drawn[name].dense().flatten(1) for name in self.parameters], 1).double().cpu()

    def _coloured(self, z: Tensor) -> Tensor:
        """y = A z."""
        return z * self.factor if self.separable else z @ self.factor.T

    def _by_parameter(self, rows: Tensor) -> dict[str, Tensor]:
        """(n, D) -> (n, *shape) of every parameter."""
        parts = rows.split([p.numel() for p in self.parameters.values()], 1)
        return {
            name: part.view(len(rows), *p.shape).to(self.device, self.centre[name].dtype)
            for (name, p), part in zip(self.parameters.items(), parts, strict=True)
        }

    def sample_perturbations(self, pairs: Sequence[int]) -> dict[str, Perturbation]:
        """s A z of some members."""
        drawn = self._by_parameter(self.step_size * self._coloured(self.normals(pairs)))
        return {name: FullRank(rows) for name, rows in drawn.items()}

    def compute_update(self, fitness: Fitness) -> dict[str, Tensor]:
        """How far the centre moves; step size and covariance change too."""
        values = fitness.values.cpu()
        if not bool(values.any()):  # nothing distinguishes the members
            return {name: torch.zeros_like(p) for name, p in self.centre.items()}
        values = values.masked_fill(~fitness.used.cpu(), -torch.inf)
        weights = torch.empty_like(self.rank_weights)
        weights[values.argsort(descending=True, stable=True)] = self.rank_weights
        weights[~values.isfinite()] = 0.0
        z = self.normals(range(self.members.count))
        y, good = self._coloured(z), weights.clamp(min=0)
        mean = good @ y
        moved = self.current_sigma * self.step_size * mean
        self._adapt(z, y, weights, good @ z, mean)
        return {name: row[0] for name, row in self._by_parameter(moved[None]).items()}

    def _adapt(self, z: Tensor, y: Tensor, weights: Tensor, mean_z: Tensor, mean_y: Tensor) -> None:
        d, c_sigma, c_c = self.size, self.c_sigma, self.c_c
        self.path_sigma = (1 - c_sigma) * self.path_sigma + math.sqrt(c_sigma * (2 - c_sigma) * self.mu_eff) * mean_z
        square = self.path_sigma.square().sum().item()
        longer = (square / d - 1) / 2 if self.csa_squared else math.sqrt(square) / self.chi - 1
        self.step_size *= math.exp(c_sigma / self.damp * longer)
        expected = 1 - (1 - c_sigma) ** (2 * self.generation + 1)
        on = float(square / expected / d - 1 < 1 + 4 / (d + 1))  # a long path waits until s has grown
        self.path_c = (1 - c_c) * self.path_c + on * math.sqrt(c_c * (2 - c_c) * self.mu_eff) * mean_y
        scaled = torch.where(weights < 0, weights * d / z.square().sum(1), weights)
        c_1 = self.c_1 * (1 - (1 - on) * c_c * (2 - c_c))
        if self.separable:
            kept = 1 - c_1 - self.c_mu * scaled.sum()
            grown = c_1 * self.path_c.square() + self.c_mu * scaled @ y.square()
        else:
            kept = 1 - c_1 - self.c_mu * weights.sum()
            grown = self.c_1 * torch.outer(self.path_c, self.path_c) + self.c_mu * (y.T * scaled) @ y
        self.covariance = kept * self.covariance + grown
        if (self.generation + 1) % self.refresh_every == 0:
            self.factor = self.covariance.sqrt() if self.separable else torch.linalg.cholesky(self.covariance)

    def state_dict(self) -> dict[str, Any]:
        """As ``ESTrainer``, with the step size, the covariance and both paths."""
        tensors = {name: getattr(self, name).clone() for name in ("covariance", "factor", "path_sigma", "path_c")}
        return super().state_dict() | {
            "cma": tensors | {"step_size": torch.tensor(self.step_size, dtype=torch.float64)}
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        super().load_state_dict(state)
        for name, tensor in state["cma"].items():
            setattr(self, name, tensor.item() if name == "step_size" else tensor.clone())
