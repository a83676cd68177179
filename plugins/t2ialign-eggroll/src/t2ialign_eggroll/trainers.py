"""Evolution strategies for any ``nn.Module`` and any fitness function, no autograd involved.

trainer = EggrollTrainer(model, fitness, population_size=256, sigma=0.05, learning_rate=1.0)
trainer.train(100)
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign import seeding
from t2ialign.tensors.batching import split
from t2ialign_eggroll.batched import evaluate_members, swapped
from t2ialign_eggroll.noise import Members, Noise, Perturbation
from t2ialign_eggroll.shaping import Fitness, shape
from t2ialign_eggroll.update import ascend, mean_perturbation, step_scale

log = logging.getLogger(__name__)
FitnessFunction = Callable[[nn.Module], Tensor | float]


class ESTrainer:
    """An evolution strategy; ``sample_perturbations`` and ``compute_update`` are the parts to override.

    One generation scores theta + sigma E_i for every member i and moves theta along mean_i f_i E_i. Trained are all
    parameters with ``requires_grad``. The model is in eval mode while members are scored, and every member meets the
    same state of torch's global random numbers, so a fitness may draw a minibatch. Parameters of 16 bits have a float32
    copy that the optimizer moves and they are rounded from, so steps below their rounding add up.

    Args:
        model: trained in place.
        fitness_fn: model -> number, higher is better; NaN or infinite leaves the member out.
        population_size: members N per generation.
        learning_rate: of the default optimizer, in the units of ``step_rule``.
        sigma: standard deviation of the perturbation's entries.
        rank: rank of the perturbation of matrices; None for full-rank noise.
        step_rule: "upstream", "eggroll" or "textbook", see ``t2ialign_eggroll.update``.
        antithetic: score every perturbation with both signs; an odd last member stays unpaired.
        noise_reuse: generations that share their noise.
        shaping: a key of ``t2ialign_eggroll.shaping.SHAPINGS``; default "zscore", or "group-zscore" with groups.
        group_size: members per group for the group shapings.
        freeze_nonlora: train only parameters with two or more axes.
        optimizer: parameters (float32 copies of those of 16 bits) -> torch optimizer, stepped with the pseudo-gradient;
            default SGD.
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

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        population_size: int = 50,
        learning_rate: float = 0.01,
        sigma: float = 0.1,
        rank: int | None = None,
        step_rule: str = "textbook",
        antithetic: bool = True,
        noise_reuse: int = 1,
        shaping: str | None = None,
        group_size: int = 0,
        freeze_nonlora: bool = False,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        batched: bool = False,
        chunk_size: int = 64,
        seed: int = 0,
    ) -> None:
        if population_size < 2:
            raise ValueError(f"population_size must be at least 2, not {population_size}")
        if noise_reuse < 1:
            raise ValueError("noise_reuse counts generations that share their noise: at least 1")
        step_scale(step_rule, sigma, population_size)  # refuses an unknown rule now rather than after a generation
        self.model = model
        self.fitness_fn = fitness_fn
        self.sigma = sigma
        self.step_rule = step_rule
        self.noise_reuse = noise_reuse
        self.shaping = shaping or ("group-zscore" if group_size else "zscore")
        self.group_size = group_size
        self.batched = batched
        self.chunk_size = chunk_size
        self.seed = seed
        self.parameters = {
            name: p for name, p in model.named_parameters() if p.requires_grad and not (freeze_nonlora and p.ndim < 2)
        }
        if not self.parameters:
            raise ValueError("the model has no parameter to train")
        self.device = next(iter(self.parameters.values())).device
        self.centre = {
            name: nn.Parameter(p.detach().float()) if p.dtype.itemsize < 4 else p for name, p in self.parameters.items()
        }
        self.members = Members(population_size, antithetic)
        self.noise = Noise({name: p.shape for name, p in self.parameters.items()}, rank)
        trained = list(self.centre.values())
        self.optimizer = optimizer(trained) if optimizer else torch.optim.SGD(trained, lr=learning_rate)
        self._compared = self._warned = False
        self.generation = 0
        self.history: list[dict[str, float]] = []
        self.best_fitness = -torch.inf
        self.best_parameters: dict[str, Tensor] = {}

    def sample_perturbations(self, pairs: Sequence[int]) -> dict[str, Perturbation]:
        """E_p of unit variance for some pairs of this generation; called again for the update, with the same result."""
        return self.noise.of(self.seed, self.generation // self.noise_reuse, self.device)(pairs)

    def compute_update(self, fitness: Fitness) -> dict[str, Tensor]:
        """The direction of ascent by parameter, which the optimizer follows as the negative of a gradient."""
        scale = step_scale(self.step_rule, self.sigma, int(fitness.used.sum()))
        mean = mean_perturbation(self.sample_perturbations, self.members, fitness)
        return {name: scale * value for name, value in mean.items()}

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """One generation; returns its line of the history."""
        scores = self.evaluate()
        self._remember_best(scores)
        self._warn_of_constant(scores)
        fitness = shape(scores, self.shaping, group_size=self.group_size)
        moved = ascend(self.optimizer, self.centre, self.compute_update(fitness))
        self._round_centre()
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
        scores = torch.empty(self.members.count, device=self.device)
        with _eval_mode(self.model):
            if self.batched and not self._compared:
                self._compare_forms()
            for rows in split(self.members.count, self.chunk_size):
                noise = self._noise(rows)
                if self.batched:
                    scores[rows] = self._batch(noise)
                else:
                    for member in range(rows.start, rows.stop):
                        scores[member] = self._score(noise, member - rows.start)
        return scores

    def _compare_forms(self) -> None:
        """Two members as noise of a batch, and as weights of the model: a module that reads a weight instead of calling
        its child would be scored without its noise, and nothing else would show it. One member at a time then."""
        self._compared = True
        noise = self._noise(slice(0, 2))
        found, wanted = self._batch(noise), self._set(noise)
        eps = max(torch.finfo(p.dtype).eps for p in self.parameters.values())  # weights of 16 bits round the noise too
        tolerance = max(0.01, 32 * eps) * (wanted[1] - wanted[0]).abs() + max(1e-4, 2 * eps) * wanted.abs().max()
        if not bool(wanted.isfinite().all()) or bool(((found - wanted).abs() <= tolerance).all()):
            return
        deaf = []
        for name, one in ((name, {name: e}) for name, e in noise.items()):
            heard, wanted = self._batch(one), self._set(one)
            if (heard[1] - heard[0]).abs() < 0.5 * (wanted[1] - wanted[0]).abs():
                deaf.append(name)
        self.batched = False
        log.warning(
            "batched=True scores another network than the model: the noise of %s does not arrive where the model reads"
            " those weights itself (a fused layer, a tied head, F.linear). Going on one member at a time.",
            ", ".join(deaf) or "some parameters",
        )

    def _set(self, noise: dict[str, Perturbation]) -> Tensor:
        """Scores of two members whose weights the model has; in a batch all the same, for its random numbers."""
        scores = []
        for row in range(2):
            member = self._member(noise, row)
            with swapped({name: self.parameters[name] for name in noise}, member):
                scores.append(self._batch(self._noise(slice(0, 2), 0.0))[row])
        return torch.stack(scores)

    def _batch(self, noise: dict[str, Perturbation]) -> Tensor:
        with self._common_random_numbers():
            return evaluate_members(self.model, self._scalar, noise).float()

    def _noise(self, members: slice, sigma: float | None = None) -> dict[str, Perturbation]:
        scale = dict.fromkeys(self.parameters, self.sigma if sigma is None else sigma)
        drawn = self.members.draw(self.sample_perturbations, members, self.device, scale)
        return {name: e.to(self.parameters[name].dtype) for name, e in drawn.items()}

    def _score(self, noise: dict[str, Perturbation], row: int) -> float:
        """The black-box way: set one member's weights, ask, put the centre back."""
        with swapped(self.parameters, self._member(noise, row)), self._common_random_numbers():
            score = self.fitness_fn(self.model)
        if isinstance(score, Tensor) and score.numel() != 1:
            raise ValueError(f"the fitness function must return one number, not a tensor of shape {tuple(score.shape)}")
        return float(score)

    def _scalar(self, model: nn.Module) -> Tensor:
        score = self.fitness_fn(model)
        if not isinstance(score, Tensor) or score.ndim:
            raise ValueError(f"with batched=True the fitness function must return a scalar tensor, not {score!r}")
        return score

    def _member(self, noise: dict[str, Perturbation], row: int) -> dict[str, Tensor]:
        index = torch.tensor([row], device=self.device)
        member = {}
        for name, e in noise.items():
            centre = self.parameters[name]
            member[name] = e.select(index, centre.new_ones(1)).added_to(centre)[0]
        return member

    def _round_centre(self) -> None:
        for name, p in self.parameters.items():
            if p is not self.centre[name]:
                p.copy_(self.centre[name])

    def _warn_of_constant(self, scores: Tensor) -> None:
        finite = scores[scores.isfinite()]
        if self._warned or len(finite) < 2 or bool((finite != finite[0]).any()):
            return
        self._warned = True
        log.warning(
            "all members have the same fitness, %g: it does not depend on the trained parameters, or sigma is too small"
            " to show",
            finite[0].item(),
        )

    def _remember_best(self, scores: Tensor) -> None:
        best = int(scores.nan_to_num(-torch.inf, -torch.inf, -torch.inf).argmax())
        if scores[best].isfinite() and scores[best] > self.best_fitness:
            self.best_fitness = scores[best].item()
            self.best_parameters = self._member(self._noise(slice(best, best + 1)), 0)

    @contextmanager
    def _common_random_numbers(self) -> Iterator[None]:
        """Every member of a generation sees the same global random numbers; the caller's state comes back."""
        seed = seeding.derive(self.seed, "fitness", self.generation)
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            yield

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs; the model's own state is the caller's, its trained parameters are here."""
        return {
            "generation": self.generation,
            "sigma": self.sigma,
            "seed": self.seed,
            "parameters": {name: p.detach().clone() for name, p in self.centre.items()},
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
        for name, p in self.centre.items():
            p.copy_(state["parameters"][name])
        self._round_centre()
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generation, self.sigma, self.seed = state["generation"], state["sigma"], state["seed"]
        self.history = [dict(line) for line in state["history"]]
        self.best_fitness = state["best_fitness"]
        self.best_parameters = {name: tensor.clone() for name, tensor in state["best_parameters"].items()}


class EggrollTrainer(ESTrainer):
    """EGGROLL (arXiv 2511.16652): low-rank perturbations of matrices, kernels and embeddings, full-rank of vectors.

    The learning rate is that of the authors' code and of eggroll-trainer: a step is lr sigma sqrt(N) mean(f E).
    """

    def __init__(
        self,
        model: nn.Module,
        fitness_fn: FitnessFunction,
        *,
        population_size: int = 256,
        rank: int = 1,
        step_rule: str = "eggroll",
        **options: Any,
    ) -> None:
        super().__init__(model, fitness_fn, population_size=population_size, rank=rank, step_rule=step_rule, **options)


class OpenESTrainer(ESTrainer):
    """OpenAI-ES (arXiv 1703.03864): full-rank Gaussian perturbations, a step is lr mean(f E) / sigma."""

    def __init__(self, model: nn.Module, fitness_fn: FitnessFunction, **options: Any) -> None:
        super().__init__(model, fitness_fn, rank=None, **options)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
