"""Strategies that adapt sigma as they go, with one standard deviation per entry or per layer: PGPE, SNES and CEM."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from t2ialign_eggroll.noise import FullRank, Perturbation
from t2ialign_eggroll.shaping import Fitness
from t2ialign_eggroll.trainers.scoring import FitnessFunction
from t2ialign_eggroll.trainers.trainer import ESTrainer
from t2ialign_eggroll.update import mean_perturbation, mean_square


class AdaptiveTrainer(ESTrainer):
    """A strategy whose full-rank noise is sigma s z, with a spread s of every entry that changes; 1 at the start.

    Args:
        sigma_learning_rate: how fast s changes; 0 leaves it.
        sigma_per: "entry", or "layer" for one s per parameter tensor.
        max_change: largest relative change of s in one generation; None for no limit.
        spread_min, spread_max: limits of s, which is 1 at the start.
        options: of ``ESTrainer``.

    Attributes:
        spread: s of every parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        sigma_learning_rate: float,
        sigma_per: Literal["entry", "layer"] = "entry",
        max_change: float | None = None,
        spread_min: float = 0.0,
        spread_max: float = math.inf,
        **options: Any,
    ) -> None:
        super().__init__(model, fitness_fn, rank=None, **options)
        if max_change is not None and not 0 < max_change < 1:
            raise ValueError(f"max_change must be between 0 and 1, not {max_change}")
        if not 0 <= spread_min < spread_max:
            raise ValueError(f"0 <= spread_min < spread_max is needed, not {spread_min} and {spread_max}")
        if sigma_learning_rate < 0:
            raise ValueError(f"sigma_learning_rate must not be negative, not {sigma_learning_rate}")
        if sigma_per not in ("entry", "layer"):
            raise ValueError(f"sigma_per is 'entry' or 'layer', not {sigma_per!r}")
        self.sigma_learning_rate = sigma_learning_rate
        self.sigma_per = sigma_per
        self.max_change, self.spread_min, self.spread_max = max_change, spread_min, spread_max
        self.spread = {name: torch.ones_like(p) for name, p in self.centre.items()}

    def sample_perturbations(self, pairs: Sequence[int]) -> Mapping[str, Perturbation]:
        """s z for some pairs of this generation."""
        drawn = super().sample_perturbations(pairs)
        return {name: FullRank(z.dense() * self.spread[name]) for name, z in drawn.items()}

    def compute_update(self, fitness: Fitness) -> dict[str, Tensor]:
        """The direction of ascent; the spread changes too, since the generation's noise is not needed any more."""
        mean = mean_perturbation(self.sample_perturbations, self.members, fitness)
        squares = mean_square(self.sample_perturbations, self.members, fitness)
        count = int(fitness.used.sum())
        update = {name: self.centre_gradient(value, count) for name, value in mean.items()}
        for name, s in self.spread.items():
            change = (squares[name] - fitness.values.mean() * s.square()) / s.square()  # mean_i f_i (z_i^2 - 1)
            change = change.mean() if self.sigma_per == "layer" else change
            self.spread[name] = self._limited(s, self.next_spread(s, change, count))
        return update

    def _limited(self, s: Tensor, new: Tensor) -> Tensor:
        """The new s, within ``max_change`` of the old one and the limits; where these disagree, not above either."""
        change = math.inf if self.max_change is None else self.max_change
        return new.clamp((s * (1 - change)).clamp(min=self.spread_min), (s * (1 + change)).clamp(max=self.spread_max))

    def centre_gradient(self, mean: Tensor, count: int) -> Tensor:
        """From mean_i f_i s z_i to what the optimizer follows."""
        raise NotImplementedError

    def next_spread(self, s: Tensor, change: Tensor, count: int) -> Tensor:
        """The new s, from mean_i f_i (z_i^2 - 1) over ``count`` members."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """As ``ESTrainer``, and the spread."""
        return super().state_dict() | {"spread": {name: s.clone() for name, s in self.spread.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        super().load_state_dict(state)
        self.spread = {name: s.clone() for name, s in state["spread"].items()}


class PGPETrainer(AdaptiveTrainer):
    """PGPE with symmetric sampling (Sehnke et al. 2010): gradients of the expected fitness for centre and sigma.

    g_mu = sigma mean_i f_i s z_i, and s grows by rate s mean_i f_i (z_i^2 - 1), at most by a fifth at once. With the
    default ClipUp and centred ranks this is the form of evotorch, in units of each layer.
    """

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        sigma_learning_rate: float = 0.1,
        max_change: float | None = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(model, fitness_fn, sigma_learning_rate=sigma_learning_rate, max_change=max_change, **options)

    def centre_gradient(self, mean: Tensor, count: int) -> Tensor:
        return self.current_sigma * mean

    def next_spread(self, s: Tensor, change: Tensor, count: int) -> Tensor:
        return s * (1 + self.sigma_learning_rate * change)


class SNESTrainer(AdaptiveTrainer):
    """Separable natural evolution strategy (Schaul, Glasmachers and Schmidhuber 2011).

    With utilities u that sum to 0: mu grows by sum_i u_i sigma s z_i, and s by the factor
    exp(eta / 2 sum_i u_i (z_i^2 - 1)). Shaped fitness other than "nes" is divided by sum_i |f_i|, as in evotorch.

    Args:
        population_size: default 4 + floor(3 ln D) for D trained numbers.
        sigma_learning_rate: eta; default 0.2 (3 + ln D) / sqrt(D).
        learning_rate: of the centre; default sqrt(N / (4 + floor(3 ln D))), the published 1 at the default population.
            With 1 a larger one, which knows the direction better, would take shorter steps.
    """

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        population_size: int | None = None,
        sigma_learning_rate: float | None = None,
        learning_rate: float | None = None,
        **options: Any,
    ) -> None:
        size = max(1, sum(p.numel() for p in model.parameters() if p.requires_grad))
        usual = 4 + int(3 * math.log(size))
        population = usual if population_size is None else population_size
        rate = math.sqrt(population / usual) if learning_rate is None else learning_rate
        natural: dict[str, Any] = {"antithetic": False, "shaping": "nes", "scale": "relative"}
        natural["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=rate)
        super().__init__(
            model,
            fitness_fn,
            population_size=population,
            sigma_learning_rate=0.2 * (3 + math.log(size)) / math.sqrt(size)
            if sigma_learning_rate is None
            else sigma_learning_rate,
            **(natural | options),
        )

    def compute_update(self, fitness: Fitness) -> dict[str, Tensor]:
        if self.shaping != "nes":
            size = fitness.values.abs().sum()
            fitness = replace(fitness, values=torch.where(size > 0, fitness.values / size, fitness.values))
        return super().compute_update(fitness)

    def centre_gradient(self, mean: Tensor, count: int) -> Tensor:
        return self.current_sigma * count * mean

    def next_spread(self, s: Tensor, change: Tensor, count: int) -> Tensor:
        return s * torch.exp(self.sigma_learning_rate / 2 * count * change)


class CEMTrainer(AdaptiveTrainer):
    """Cross-entropy method (Rubinstein 1999): the best members' mean and standard deviation become the next ones.

    sigma s is the deviation of the elite, entry by entry and unbiased, at most ``max_change`` away from the last, since
    without a limit it shrinks before the centre has arrived. For small modules and scores without much noise.

    Args:
        elite_share: share of the population that is the elite, at least two members.
        options: of ``AdaptiveTrainer`` and ``ESTrainer``.
    """

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        elite_share: float = 0.25,
        max_change: float | None = 0.1,
        **options: Any,
    ) -> None:
        own = ("antithetic", "shaping", "optimizer", "learning_rate", "sigma_learning_rate", "sigma_per")
        if given := sorted(options.keys() & set(own)):
            raise ValueError(f"CEM decides {given[0]} itself")
        natural: dict[str, Any] = {"antithetic": False, "shaping": "centred-rank", "scale": "relative"}
        natural["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
        super().__init__(model, fitness_fn, sigma_learning_rate=1.0, max_change=max_change, **(natural | options))
        self.elite = int(elite_share * self.members.count)
        if not 2 <= self.elite <= self.members.count:
            raise ValueError(
                f"the elite of {self.members.count} members is {self.elite} with elite_share {elite_share}; it must be"
                " two members or more, and not more than all"
            )

    def compute_update(self, fitness: Fitness) -> dict[str, Tensor]:
        """How far the centre moves; the spread becomes the elite's."""
        ranked = fitness.values.masked_fill(~fitness.used, -torch.inf)
        best = ranked.argsort(descending=True, stable=True)[: min(self.elite, int(fitness.used.sum()))]
        if len(best) < 2 or bool(fitness.constant):
            return {name: torch.zeros_like(p) for name, p in self.centre.items()}
        values, used = torch.zeros_like(fitness.values), torch.zeros_like(fitness.used)
        values[best], used[best] = 1.0, True
        elite = replace(fitness, values=values, used=used)
        mean = mean_perturbation(self.sample_perturbations, self.members, elite)
        squares = mean_square(self.sample_perturbations, self.members, elite)
        for name, s in self.spread.items():
            variance = (squares[name] - mean[name].square()).clamp(min=0) * len(best) / (len(best) - 1)
            self.spread[name] = self._limited(s, variance.sqrt())
        return {name: self.current_sigma * value for name, value in mean.items()}
