"""Which table a run delivers: the one that gains most on a fixed list of images, paired with the start table's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign import State, seeding
from t2ialign.problem.problem import Problem
from t2ialign_ppo.config import PpoEpdConfig
from t2ialign_ppo.rollouts import draw_references, scored
from t2ialign_solvers.table import SolverTable

TABLE = ("positions", "weights", "scale_dir", "scale_time")


@dataclass(frozen=True)
class Gain:
    """Mean and standard error over prompts of (a table's reward - the start table's)."""

    mean: float
    se: float


class Validation:
    """Fixed prompts, one image each, with noise of their own.

    Attributes:
        best: the best table so far.
        best_gain: its gain over the start table, 0 for that table itself.
        best_step: the step after which it was the policy's mean.
    """

    def __init__(self, problem: Problem, start: SolverTable, config: PpoEpdConfig) -> None:
        self.problem, self.start, self.best = problem, start, start
        seed, texts = problem.spec.run.seed, config.validation_texts(problem.spec)
        count = config.validation_size(texts)
        chosen = seeding.choose(seeding.derive(seed, "ppo-validation"), len(texts), count)
        self.conditioning = problem.encode([texts[index] for index in chosen])
        self.seeds = [seeding.derive(seed, "ppo-validation-image", number) for number in range(count)]
        self.best_gain, self.best_step = 0.0, 0
        self.base: dict[str, Tensor] = {}
        self.references: dict[str, Tensor] = {}

    def try_table(self, table: SolverTable, step: int) -> Gain:
        """Compare a table with the start table; keep it if it gains more than any before."""
        if not self.base:
            self.base = self._score(self.start)
        both = {name: torch.stack([self.base[name], values]) for name, values in self._score(table).items()}
        combined = self.problem.rewards.combine(both, torch.arange(len(self.seeds)))
        differences = combined[1] - combined[0]
        known = differences[~differences.isnan()]
        if len(known) < 2:
            return Gain(math.nan, math.nan)
        gain = Gain(known.mean().item(), known.std().item() / math.sqrt(len(known)))
        if gain.mean > self.best_gain:
            self.best, self.best_gain, self.best_step = table, gain.mean, step
        return gain

    def _score(self, table: SolverTable) -> dict[str, Tensor]:
        if not self.references:
            self.references = draw_references(self.problem, self.conditioning, self.seeds)
        return scored(
            self.problem, table, self.conditioning, self.seeds, references=self.references, optimised_only=True
        ).rewards

    def state(self) -> State:
        tensors = {f"best.{name}": getattr(self.best, name).clone() for name in TABLE}
        tensors |= {f"validation.{name}": values for name, values in self.base.items()}
        return State(tensors, {"best_gain": self.best_gain, "best_step": self.best_step})

    def load_state(self, state: State) -> None:
        self.best = self.start.like(**{name: state.tensors[f"best.{name}"] for name in TABLE})
        self.best_gain, self.best_step = state.values["best_gain"], state.values["best_step"]
        self.base = {
            name.removeprefix("validation."): values
            for name, values in state.tensors.items()
            if name.startswith("validation.")
        }
