"""What strategies with correlated noise share: one factor A of the covariance of all trained numbers together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from t2ialign_eggroll.noise import FullRank, Perturbation
from t2ialign_eggroll.trainers.scoring import FitnessFunction
from t2ialign_eggroll.trainers.trainer import ESTrainer

#: Largest number of trained entries whose whole covariance is kept (a float64 matrix of 128 MB).
MOST = 4000


class CovarianceTrainer(ESTrainer):
    """Members m + sigma s A z. Entries are in units of each parameter (``trainers.defaults``).

    Args:
        population_size: default 4 + floor(3 ln D) for D trained numbers.
        separable: A is diagonal, for any number of parameters.
        options: of ``ESTrainer``; the centre moves as the strategy says, so there is no optimizer to choose.

    Attributes:
        size: D.
        factor: A (D, D), or (D,) if separable; float64 on the CPU, as all of the strategy's state. 1 at the start.
        step_size: s, 1 at the start.

    Raises:
        ValueError: too many parameters for a whole covariance, or an option that these strategies do not have.
    """

    #: What messages call it, and what they advise for many parameters.
    NAME: ClassVar[str]
    ADVICE: ClassVar[str]
    #: From scores to fitness.
    SHAPING: ClassVar[str]
    #: Tensors that a resumed training needs.
    KEPT: ClassVar[tuple[str, ...]] = ("factor",)

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        population_size: int | None = None,
        separable: bool = False,
        **options: Any,
    ) -> None:
        own = ("antithetic", "shaping", "optimizer", "learning_rate", "step_rule", "scale", "rank", "group_size")
        if given := sorted(options.keys() & set(own)):
            raise ValueError(f"{self.NAME} decides {given[0]} itself")
        size = max(1, sum(p.numel() for p in model.parameters() if p.requires_grad))
        if size > MOST and not separable:
            raise ValueError(
                f"{self.NAME} keeps a covariance of {size:,} x {size:,} numbers; {MOST:,} x {MOST:,} are the most: take"
                f" {self.ADVICE}"
            )
        super().__init__(
            model,
            fitness_fn,
            population_size=4 + int(3 * math.log(size)) if population_size is None else population_size,
            rank=None,
            antithetic=False,
            scale="relative",
            shaping=self.SHAPING,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
            **options,
        )
        self.size = sum(p.numel() for p in self.parameters.values())
        self.separable = separable
        self.step_size = 1.0
        self.factor = (torch.ones if separable else torch.eye)(self.size, dtype=torch.float64)

    def normals(self, members: Sequence[int]) -> Tensor:
        """z of some members of this generation, float64 (n, D) on the CPU."""
        drawn = super().sample_perturbations(members)
        return torch.cat([drawn[name].dense().flatten(1) for name in self.parameters], 1).double().cpu()

    def coloured(self, z: Tensor) -> Tensor:
        """y = A z, row by row."""
        return z * self.factor if self.separable else z @ self.factor.T

    def by_parameter(self, rows: Tensor) -> dict[str, Tensor]:
        """(n, D) -> (n, *shape) of every parameter."""
        parts = rows.split([p.numel() for p in self.parameters.values()], 1)
        return {
            name: part.view(len(rows), *p.shape).to(self.device, self.centre[name].dtype)
            for (name, p), part in zip(self.parameters.items(), parts, strict=True)
        }

    def sample_perturbations(self, pairs: Sequence[int]) -> Mapping[str, Perturbation]:
        """s A z of some members."""
        drawn = self.by_parameter(self.step_size * self.coloured(self.normals(pairs)))
        return {name: FullRank(rows) for name, rows in drawn.items()}

    def state_dict(self) -> dict[str, Any]:
        """As ``ESTrainer``, with what the strategy has learnt of the covariance."""
        tensors = {name: getattr(self, name).clone() for name in self.KEPT}
        tensors["step_size"] = torch.tensor(self.step_size, dtype=torch.float64)
        return super().state_dict() | {"cma": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        super().load_state_dict(state)
        for name, tensor in state["cma"].items():
            setattr(self, name, tensor.item() if name == "step_size" else tensor.clone())
