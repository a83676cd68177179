"""The names and calls of eggroll-trainer, on this package's strategies: change the import and the program runs.

from t2ialign_eggroll.eggroll_trainer import EGGROLLTrainer, ESTrainer, VanillaESTrainer

docs/porting.md lists every name and what differs. New programs are better off with ``EggrollTrainer``, which scores in
batches and needs no tuning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from t2ialign import seeding
from t2ialign_eggroll.noise import FullRank, Members, Noise, Perturbation
from t2ialign_eggroll.trainers.scoring import Scorer
from t2ialign_eggroll.trainers.trainer import EggrollTrainer

__all__ = ["EGGROLLTrainer", "ESTrainer", "SimpleES", "SimpleESTrainer", "VanillaESTrainer"]


class _Surface(torch.optim.Optimizer):
    """What all trainers share: an Optimizer by class, so that torch's learning-rate schedulers take it.

    Attributes:
        fitness_history: mean fitness of every generation.
        best_fitness: highest fitness of any member so far; None before the first generation.
        best_params: the parameters of that member, flat (D,), or None.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | None,
        model: nn.Module | None,
        fitness_fn: Callable[[nn.Module], Any] | None,
        population_size: int,
        learning_rate: float,
        sigma: float,
        device: torch.device | str | None,
        seed: int | None,
    ) -> None:
        if not isinstance(model, nn.Module) or not callable(fitness_fn):
            raise TypeError(f"{type(self).__name__} needs model, a torch module, and fitness_fn, a function of it")
        if population_size < 2:
            raise ValueError(f"population_size must be at least 2, not {population_size}")
        if device is not None:
            model.to(device)
        super().__init__(list(params) if params is not None else list(model.parameters()), {"lr": learning_rate})
        self.model = model
        self.fitness_fn = fitness_fn
        self.population_size = population_size
        self.sigma = sigma
        self.seed = int(torch.randint(2**31, (1,))) if seed is None else seed
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._trained:
            raise ValueError("the model has no parameter to train")
        self.device = next(iter(self._trained.values())).device
        self.initial_params = self.current_params
        self.generation = 0
        self.fitness_history: list[float] = []
        self.best_fitness: float | None = None
        self.best_params: Tensor | None = None

    @property
    def learning_rate(self) -> float:
        """The ``lr`` of the parameter groups, which schedulers change."""
        return float(self.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    @property
    def current_params(self) -> Tensor:
        """The trained parameters, flat (D,), in the order of ``model.parameters()``."""
        return parameters_to_vector(self._trained.values()).detach().clone()

    @property
    def best_state_dict(self) -> dict[str, Tensor] | None:
        """State of the model with the best member's parameters, or None."""
        return None if self.best_params is None else self.get_best_model().state_dict()

    def evaluate_fitness(self, model: nn.Module) -> Any:
        """``fitness_fn(model)``; override to score members in another way."""
        return self.fitness_fn(model)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Nothing: no gradient is ever taken."""

    def train(self, num_generations: int, verbose: bool = True) -> dict[str, Any]:
        """Some generations; ``verbose`` prints a line for each.

        Returns:
            generation, best_fitness and fitness_history.
        """
        for _ in range(num_generations):
            line: dict[str, Any] = self.step()  # type: ignore[assignment]
            if verbose:
                print(
                    f"generation {line['generation']}: mean fitness {line['mean_fitness']:.4f}, best"
                    f" {line['best_fitness']:.4f}, std {line['std_fitness']:.4f}"
                )
        return {
            "generation": self.generation,
            "best_fitness": self.best_fitness,
            "fitness_history": list(self.fitness_history),
        }

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the initial parameters, with no history."""
        vector_to_parameters(self.initial_params, self._trained.values())
        self.generation, self.fitness_history = 0, []
        self.best_fitness = self.best_params = None

    def get_best_model(self) -> nn.Module:
        """A copy of the model with the parameters of the member that scored best; of the model as it is before any."""
        best = copy.deepcopy(self.model)
        if self.best_params is not None:
            vector_to_parameters(self.best_params, [p for p in best.parameters() if p.requires_grad])
        return best


class ESTrainer(_Surface):
    """A strategy of one's own on flat parameter vectors: define ``sample_perturbations`` and ``compute_update``.

    All perturbations (N, D) are in memory at once, as the two methods want it.

    Args:
        params: the parameters, for torch's Optimizer; trained are those of ``model`` with ``requires_grad``.
        seed: decides the noise; None takes one from torch's global generator.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | None = None,
        model: nn.Module | None = None,
        fitness_fn: Callable[[nn.Module], Any] | None = None,
        population_size: int = 50,
        learning_rate: float = 0.01,
        sigma: float = 0.1,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(params, model, fitness_fn, population_size, learning_rate, sigma, device, seed)
        self._scorer = Scorer(self.model, lambda net: self.evaluate_fitness(net), self._trained, False, population_size)

    def sample_perturbations(self, population_size: int) -> Tensor:
        """(N, D), of unit variance; a member is current_params + sigma times its row."""
        raise NotImplementedError(f"{type(self).__name__} must define sample_perturbations")

    def compute_update(self, perturbations: Tensor, fitnesses: Tensor) -> Tensor:
        """(D,): the step is ``learning_rate`` times this. ``fitnesses`` are float32 (N,), raw."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_update")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> dict[str, Any]:  # type: ignore[override]
        """One generation; ``closure`` is accepted and ignored.

        Returns:
            generation, and mean_fitness, best_fitness and std_fitness of this generation's members.
        """
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seeding.derive(self.seed, "perturbation", self.generation))
            noise = self.sample_perturbations(self.population_size)
        centre = self.current_params
        if noise.shape != (self.population_size, len(centre)):
            raise ValueError(
                f"sample_perturbations must return {(self.population_size, len(centre))}, not {tuple(noise.shape)}"
            )
        shapes = {name: p.shape for name, p in self._trained.items()}

        def members(rows: slice) -> dict[str, Perturbation]:
            parts = (self.sigma * noise[rows]).split([shape.numel() for shape in shapes.values()], dim=1)
            return {n: FullRank(part.view(-1, *s)) for (n, s), part in zip(shapes.items(), parts, strict=True)}

        seed = seeding.derive(self.seed, "fitness", self.generation)
        scores = self._scorer.evaluate(members, self.population_size, seed)
        used = scores.isfinite()
        finite = scores[used]
        if len(finite) and (self.best_fitness is None or finite.max().item() > self.best_fitness):
            self.best_fitness = finite.max().item()
            best = scores.nan_to_num(-torch.inf, -torch.inf, -torch.inf).argmax()
            self.best_params = centre + self.sigma * noise[best]
        if len(finite) > 1 and bool((finite != finite[0]).any()):
            update = self.compute_update(noise[used], finite)
            vector_to_parameters(centre + self.learning_rate * update, self._trained.values())
        self.generation += 1
        self.fitness_history.append(finite.mean().item())
        return {
            "generation": self.generation,
            "mean_fitness": self.fitness_history[-1],
            "best_fitness": finite.max().item() if len(finite) else float("nan"),
            "std_fitness": finite.std().item() if len(finite) > 1 else 0.0,
        }


class VanillaESTrainer(ESTrainer):
    """Plain evolution strategy: a step is lr mean(f eps), with standardised fitness f (unbiased) and Gaussian eps."""

    def sample_perturbations(self, population_size: int) -> Tensor:
        return torch.randn(population_size, self.current_params.shape[0], device=self.device)

    def compute_update(self, perturbations: Tensor, fitnesses: Tensor) -> Tensor:
        shaped = (fitnesses - fitnesses.mean()) / (fitnesses.std() + 1e-8)
        return shaped @ perturbations / len(shaped)


#: Its names in earlier versions.
SimpleES = SimpleESTrainer = VanillaESTrainer


class EGGROLLTrainer(_Surface):
    """Low-rank perturbations; a step is lr sigma sqrt(N) mean(f E).

    Args:
        learning_rate: where neither this nor ``sigma`` is given, noise and steps are those of ``EggrollTrainer``'s
            defaults, in antithetic pairs; 0.01 where only ``sigma`` is.
        sigma: standard deviation of the perturbation's entries; 0.1 where only ``learning_rate`` is given.
        rank: of the perturbation of matrices.
        noise_reuse: 0 draws fresh noise without pairs; q > 0 antithetic pairs whose noise serves q generations.
        group_size: members per group that are standardised together; 0 for all.
        freeze_nonlora: train only parameters with two or more axes.
        seed: decides the noise; None takes one from torch's global generator.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | None = None,
        model: nn.Module | None = None,
        fitness_fn: Callable[[nn.Module], Any] | None = None,
        population_size: int = 256,
        learning_rate: float | None = None,
        sigma: float | None = None,
        rank: int = 1,
        noise_reuse: int = 0,
        group_size: int = 0,
        freeze_nonlora: bool = False,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> None:
        tuned = learning_rate is not None or sigma is not None
        rate, width = learning_rate or 0.01, sigma or 0.1
        super().__init__(params, model, fitness_fn, population_size, rate, width, device, seed)
        self.rank = rank
        self.noise_reuse = noise_reuse
        self.group_size = group_size
        self.freeze_nonlora = freeze_nonlora
        self._inner = EggrollTrainer(
            self.model,
            lambda net: self.evaluate_fitness(net),
            population_size=population_size,
            rank=rank,
            antithetic=noise_reuse > 0 or not tuned,
            noise_reuse=max(1, noise_reuse),
            group_size=group_size,
            freeze_nonlora=freeze_nonlora,
            seed=self.seed,
            **({"learning_rate": rate, "sigma": width} if tuned else {}),
        )
        self._start = self._inner.state_dict()
        if not tuned:
            self.learning_rate, self.sigma = self._inner.optimizer.param_groups[0]["lr"], self._inner.sigma

    @property
    def param_names(self) -> list[str]:
        """Names of the trained parameters."""
        return list(self._inner.parameters)

    @property
    def param_shapes(self) -> list[torch.Size]:
        """Shapes of the trained parameters."""
        return [p.shape for p in self._inner.parameters.values()]

    @property
    def param_dims(self) -> list[int]:
        """Entries of the trained parameters."""
        return [p.numel() for p in self._inner.parameters.values()]

    @property
    def is_matrix(self) -> list[bool]:
        """Which of them get low-rank noise."""
        return [p.ndim > 1 for p in self._inner.parameters.values()]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> dict[str, Any]:  # type: ignore[override]
        """One generation; ``closure`` is accepted and ignored. Attributes assigned since the last one take effect.

        Returns:
            generation, and mean_fitness, best_fitness and std_fitness of this generation's members.
        """
        inner = self._inner
        inner.sigma, inner.noise_reuse = self.sigma, max(1, self.noise_reuse)
        inner.members = Members(self.population_size, inner.members.antithetic)
        inner.noise = Noise(inner.noise.shapes, self.rank)
        for group in inner.optimizer.param_groups:
            group["lr"] = self.learning_rate
        line = inner.step()
        self.generation = inner.generation
        self.fitness_history.append(line["mean_fitness"])
        if inner.best_parameters:
            self.best_fitness = inner.best_fitness
            self.best_params = parameters_to_vector(
                [inner.best_parameters.get(name, p) for name, p in self._trained.items()]
            ).detach()
        return {key: line[key] for key in ("generation", "mean_fitness", "best_fitness", "std_fitness")}

    def reset(self) -> None:
        """Back to the initial parameters, with no history."""
        super().reset()
        self._inner.load_state_dict(self._start)
