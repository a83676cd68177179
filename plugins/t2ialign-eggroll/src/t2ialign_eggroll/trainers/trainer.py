"""Evolution strategies for any ``nn.Module`` and any fitness function: one class, and its two usual forms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from t2ialign import seeding
from t2ialign_eggroll.noise import Members, Noise, Perturbation
from t2ialign_eggroll.shaping import Fitness, shape
from t2ialign_eggroll.trainers import defaults
from t2ialign_eggroll.trainers.scoring import FitnessFunction, Scorer
from t2ialign_eggroll.update import ascend, mean_perturbation, step_scale

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class ESTrainer:
    """An evolution strategy; ``sample_perturbations`` and ``compute_update`` are the parts to override.

    One generation scores theta + sigma E_i for every member i and moves theta along mean_i f_i E_i. Trained are all
    parameters with ``requires_grad``. The model is in eval mode while members are scored, and every member meets the
    same state of torch's global random numbers, so a fitness may draw a minibatch. Parameters of 16 bits have a float32
    copy that the optimizer moves and they are rounded from, so steps below their rounding add up.

    With ``scale = "relative"``, noise and steps are in units of each parameter's own size (``trainers.defaults``), and
    the optimizer moves the change since the start: its weight decay pulls towards the start.

    Args:
        model: trained in place.
        fitness_fn: model -> number, higher is better; NaN or infinite leaves the member out.
        population_size: members N per generation.
        learning_rate: relative scale: a factor of the default step, 1 by default. Absolute scale: of the default
            optimizer, in the units of ``step_rule``, 0.01 by default.
        sigma: standard deviation of the perturbation's entries: 0.5 units in the relative scale, 0.1 in the absolute.
        rank: rank of the perturbation of matrices; None for full-rank noise.
        scale: "relative" or "absolute". By default absolute where ``learning_rate``, ``step_rule`` or an optimizer
            of the caller's is given, as in published codes, and relative otherwise.
        step_rule: "output" (default in the relative scale), "upstream", "eggroll" or "textbook", see
            ``t2ialign_eggroll.update``.
        antithetic: score every perturbation with both signs; an odd last member stays unpaired.
        noise_reuse: generations that share their noise.
        shaping: a key of ``t2ialign_eggroll.shaping.SHAPINGS``; by default "group-zscore" with groups, "centred-rank"
            in the relative scale with ClipUp or Adam, else "zscore".
        group_size: members per group for the group shapings.
        freeze_nonlora: train only parameters with two or more axes.
        optimizer: "clipup" (default in the relative scale), "adam", "momentum" or "sgd" (default in the absolute one);
            or parameters (float32 copies of those of 16 bits) -> torch optimizer. It steps along the pseudo-gradient.
        sigma_schedule: generation, from 0 -> factor of sigma. The step's schedule is any torch scheduler on
            ``trainer.optimizer``.
        batched: score many members in one ``torch.vmap`` of ``fitness_fn``, which must return a scalar tensor. Before
            the first generation two members are compared with the black-box form, which is used where they differ.
        chunk_size: members in one batch, or members whose noise is in memory at once.
        seed: decides the noise.

    Attributes:
        optimizer: give it to any torch learning-rate scheduler.
        generation: generations done.
        history: one dict per generation: generation, mean_fitness, best_fitness, std_fitness, nonfinite, update_norm.
        best_fitness: highest fitness of any member so far.
        best_parameters: the parameters of that very member.
    """

    #: Step rule of the absolute scale.
    STEP_RULE = "textbook"

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        population_size: int = 64,
        learning_rate: float | None = None,
        sigma: float | None = None,
        rank: int | None = None,
        scale: Literal["relative", "absolute"] | None = None,
        step_rule: str | None = None,
        antithetic: bool = True,
        noise_reuse: int = 1,
        shaping: str | None = None,
        group_size: int = 0,
        freeze_nonlora: bool = False,
        optimizer: defaults.OptimizerName | MakeOptimizer | None = None,
        sigma_schedule: Callable[[int], float] | None = None,
        batched: bool = False,
        chunk_size: int = 64,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"the first argument is the module to train, not {type(model).__name__}; the classes that begin with"
                " parameters, as in eggroll-trainer, are in t2ialign_eggroll.eggroll_trainer"
            )
        if population_size < 2:
            raise ValueError(f"population_size must be at least 2, not {population_size}")
        if noise_reuse < 1:
            raise ValueError("noise_reuse counts generations that share their noise: at least 1")
        for name, value in (("sigma", sigma), ("learning_rate", learning_rate)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if scale not in (None, "relative", "absolute"):
            raise ValueError(f"scale is 'relative' or 'absolute', not {scale!r}")
        if isinstance(optimizer, str) and optimizer not in defaults.OPTIMIZERS:
            raise ValueError(f"unknown optimizer '{optimizer}': {', '.join(defaults.OPTIMIZERS)}, or a function")
        chosen = learning_rate is not None or step_rule is not None or callable(optimizer)
        self.scale = scale or ("absolute" if chosen else "relative")
        relative = self.scale == "relative"
        self.model = model
        self.fitness_fn = fitness_fn
        self.sigma = sigma or (defaults.SIGMA if relative else 0.1)
        self.sigma_schedule = sigma_schedule
        self.step_rule = step_rule or ("output" if relative else self.STEP_RULE)
        step_scale(self.step_rule, self.sigma, population_size)  # refuses an unknown rule before the first generation
        optimizer = optimizer or ("clipup" if relative else "sgd")
        ranks = relative and optimizer in ("clipup", "adam")
        self.shaping = shaping or ("group-zscore" if group_size else "centred-rank" if ranks else "zscore")
        self.noise_reuse = noise_reuse
        self.group_size = group_size
        self.seed = seed
        self.parameters = {
            name: p for name, p in model.named_parameters() if p.requires_grad and not (freeze_nonlora and p.ndim < 2)
        }
        if not self.parameters:
            raise ValueError("the model has no parameter to train")
        self.scorer = Scorer(model, fitness_fn, self.parameters, batched, chunk_size)
        self.device = self.scorer.device
        self.members = Members(population_size, antithetic)
        self.noise = Noise({name: p.shape for name, p in self.parameters.items()}, rank)
        self.units = defaults.units(self.parameters) if relative else dict.fromkeys(self.parameters, 1.0)
        self.origin = {name: p.detach().clone() for name, p in self.parameters.items()} if relative else {}
        self.centre = {name: self._moved(p) for name, p in self.parameters.items()}
        trained = list(self.centre.values())
        if callable(optimizer):
            self.optimizer = optimizer(trained)
        else:
            size = sum(p.numel() for p in trained)
            step = defaults.step_length(self.sigma, self.members.pairs, size) if relative else 1.0
            rate = learning_rate or (1.0 if relative else 0.01)
            longest = rate * self.sigma if relative else torch.inf
            self.optimizer = defaults.make_optimizer(optimizer, trained, rate * step, longest)
        self.generation = 0
        self.history: list[dict[str, float]] = []
        self.best_fitness = -torch.inf
        self.best_parameters: dict[str, Tensor] = {}

    def _moved(self, p: nn.Parameter) -> nn.Parameter:
        """What the optimizer moves: the change in units, the parameter itself, or its float32 copy."""
        wide = torch.promote_types(p.dtype, torch.float32)
        if self.origin:
            return nn.Parameter(torch.zeros_like(p, dtype=wide))
        return p if p.dtype == wide else nn.Parameter(p.detach().to(wide))

    @property
    def batched(self) -> bool:
        """Whether members are scored in batches; turned off where that would score another network."""
        return self.scorer.batched

    @property
    def current_sigma(self) -> float:
        """Sigma of this generation."""
        return self.sigma * (self.sigma_schedule(self.generation) if self.sigma_schedule else 1.0)

    def sample_perturbations(self, pairs: Sequence[int]) -> Mapping[str, Perturbation]:
        """E_p of unit variance for some pairs of this generation; called again for the update, with the same result."""
        return self.noise.of(self.seed, self.generation // self.noise_reuse, self.device)(pairs)

    def compute_update(self, fitness: Fitness) -> dict[str, Tensor]:
        """The direction of ascent by parameter, which the optimizer follows as the negative of a gradient."""
        scale = step_scale(
            self.step_rule, self.current_sigma, int(fitness.used.sum()), antithetic=self.members.antithetic
        )
        mean = mean_perturbation(self.sample_perturbations, self.members, fitness)
        return {name: scale * value for name, value in mean.items()}

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """One generation; returns its line of the history."""
        scores = self.evaluate()
        self._remember_best(scores)
        fitness = shape(scores, self.shaping, group_size=self.group_size)
        moved = ascend(self.optimizer, self.centre, self.compute_update(fitness))
        self._write_centre()
        self.generation += 1
        finite = scores[scores.isfinite()]
        line = {
            "generation": self.generation,
            "mean_fitness": finite.mean().item(),
            "best_fitness": finite.max().item() if len(finite) else float("nan"),
            "std_fitness": finite.std().item() if len(finite) > 1 else 0.0,
            "nonfinite": 1 - len(finite) / len(scores),
            "update_norm": moved.item(),
        }
        self.history.append(line)
        return line

    def train(
        self, num_generations: int, callback: Callable[[dict[str, float]], object] | None = None
    ) -> list[dict[str, float]]:
        """Run some generations; ``callback`` gets every line of the history as it is made."""
        for _ in range(num_generations):
            line = self.step()
            if callback:
                callback(line)
        return self.history

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Fitness of every member of the current generation, (N,) float32; no weight changes."""
        return self.scorer.evaluate(self._noise, self.members.count, self._fitness_seed)

    @property
    def _fitness_seed(self) -> int:
        return seeding.derive(self.seed, "fitness", self.generation)

    def _noise(self, members: slice) -> dict[str, Perturbation]:
        scale = {name: self.current_sigma * unit for name, unit in self.units.items()}
        drawn = self.members.draw(self.sample_perturbations, members, self.device, scale)
        return {name: e.to(self.parameters[name].dtype) for name, e in drawn.items()}

    def _write_centre(self) -> None:
        for name, p in self.parameters.items():
            moved = self.centre[name]
            if self.origin:
                p.copy_(torch.add(self.origin[name], moved, alpha=self.units[name]))
            elif p is not moved:
                p.copy_(moved)

    def _remember_best(self, scores: Tensor) -> None:
        best = int(scores.nan_to_num(-torch.inf, -torch.inf, -torch.inf).argmax())
        if scores[best].isfinite() and scores[best] > self.best_fitness:
            self.best_fitness = scores[best].item()
            self.best_parameters = self.scorer.member(self._noise(slice(best, best + 1)), 0)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs; the model's own state is the caller's, its trained parameters are here."""
        return {
            "generation": self.generation,
            "sigma": self.sigma,
            "seed": self.seed,
            "parameters": {name: p.detach().clone() for name, p in self.centre.items()},
            "origin": {name: p.clone() for name, p in self.origin.items()},
            "units": dict(self.units),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "history": [dict(line) for line in self.history],
            "best_fitness": self.best_fitness,
            "best_parameters": {name: tensor.clone() for name, tensor in self.best_parameters.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        if missing := self.parameters.keys() ^ state["parameters"].keys():
            raise ValueError(f"the state and the model differ in the trained parameter '{min(missing)}'")
        if bool(state["origin"]) != bool(self.origin):
            raise ValueError(f"the state is of another scale than '{self.scale}'")
        for name, p in self.centre.items():
            p.copy_(state["parameters"][name])
        for name, origin in self.origin.items():
            origin.copy_(state["origin"][name])
        self.units = dict(state["units"])
        self._write_centre()
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generation, self.sigma, self.seed = state["generation"], state["sigma"], state["seed"]
        self.history = [dict(line) for line in state["history"]]
        self.best_fitness = state["best_fitness"]
        self.best_parameters = {name: tensor.clone() for name, tensor in state["best_parameters"].items()}


class EggrollTrainer(ESTrainer):
    """EGGROLL (arXiv 2511.16652): low-rank perturbations of matrices, kernels and embeddings, full-rank of vectors.

    A learning rate without another ``step_rule`` is that of the authors' code and of eggroll-trainer: a step is
    lr sigma sqrt(N) mean(f E).
    """

    STEP_RULE = "eggroll"

    def __init__(self, model: nn.Module, fitness_fn: FitnessFunction, *, rank: int = 1, **options: Any) -> None:
        super().__init__(model, fitness_fn, rank=rank, **options)


class OpenESTrainer(ESTrainer):
    """OpenAI-ES (arXiv 1703.03864): full-rank Gaussian perturbations.

    A learning rate without another ``step_rule`` means a step of lr mean(f E) / sigma.
    """

    def __init__(self, model: nn.Module, fitness_fn: FitnessFunction, **options: Any) -> None:
        super().__init__(model, fitness_fn, rank=None, **options)
