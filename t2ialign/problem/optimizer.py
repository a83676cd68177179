"""Alignment algorithms: they stand above the problem that they work on."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from t2ialign.config import Requirements
from t2ialign.declaration import Part
from t2ialign.errors import T2IAlignError, blaming
from t2ialign.spec.model import LoraOptimizerConfig, OptimizerConfig
from t2ialign.tensors.state import State

if TYPE_CHECKING:
    from torch import Tensor

    from t2ialign.lora.average import Average
    from t2ialign.problem.problem import Problem
    from t2ialign.tensors.conditioning import Conditioning


log = logging.getLogger(__name__)
#: Steps without any change after which a person is told.
UNMOVED = 3


@dataclass
class StepResult:
    """What one optimizer step reports.

    Attributes:
        metrics: flat name -> number; deterministic (no times), so that a resumed run writes the same lines.
        images: a few images worth a look (B, 3, H, W), or None.
    """

    metrics: dict[str, float]
    images: Tensor | None = None


class Optimizer(Part, ABC):
    """An alignment algorithm.

    Step ``i`` is a function of (spec, state, i): all randomness comes from ``t2ialign.seeding``.
    """

    role = "optimizer"
    Config: ClassVar[type[OptimizerConfig]] = OptimizerConfig
    problem: Problem

    def setup(self, problem: Problem) -> None:
        """Take the assembled problem; allocate state."""
        self.problem = problem

    @abstractmethod
    def step(self, index: int) -> StepResult:
        """Do step ``index`` (from 0)."""

    def after_step(self, index: int) -> None:
        """Called once after every ``step(index)``."""

    @abstractmethod
    def generate(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        """Images as the run delivers them now: with the LoRA, the optimised noise, the solver table."""

    @abstractmethod
    def state(self) -> State:
        """Everything a resumed run needs."""

    @abstractmethod
    def load_state(self, state: State) -> None:
        """Continue from ``state()``."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write what the run delivers, with a README.md. Checking it is for ``check``, once it is safe on disk."""

    def check(self, folder: Path) -> str:
        """Prove what ``export`` wrote, by reading it back; without a second copy of the network.

        Returns:
            What was shown, one line for README.md; empty where there is nothing to prove.

        Raises:
            ExportError: what was read is not what the run has. The files stay, marked as unchecked.
        """
        return ""


class LoraOptimizer(Optimizer):
    """An optimizer whose result is the problem's LoRA: generation, state and export follow from that.

    Attributes:
        average: what the run delivers where its options ask for a moving average, else None.
    """

    needs: ClassVar[Requirements] = {"backend": {"lora"}}
    Config: ClassVar[type[OptimizerConfig]] = LoraOptimizerConfig
    average: Average | None = None
    _size: Sequence[float] = ()
    _unmoved = 0

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        if decay := getattr(self.config, "ema", None):
            from t2ialign.lora.average import Average

            self.average = Average(decay, problem.adapter.parameters())

    def after_step(self, index: int) -> None:
        """Keep the average, and look whether the LoRA is still finite and whether it moves at all.

        Raises:
            T2IAlignError: a tensor of it became NaN or infinite.
        """
        import torch

        if self.average:
            self.average.update(self.problem.adapter.parameters())
        trained = self.trained()
        size = torch.stack([tensor.detach().float().norm() for tensor in trained.values()]).tolist()
        if bad := [name for name, length in zip(trained, size, strict=True) if not math.isfinite(length)]:
            raise T2IAlignError(
                f"what is trained is no longer finite after step {index + 1} ('{bad[0]}'): use a smaller learning rate"
            )
        self._unmoved = self._unmoved + 1 if size == self._size else 0
        self._size = size
        if self._unmoved == UNMOVED:
            log.warning("the last %d steps changed nothing; is a reward constant, or every score dropped?", UNMOVED)

    def trained(self) -> Mapping[str, Tensor]:
        """The tensors that steps change, by name."""
        return self.problem.adapter.parameters()

    def delivered(self) -> AbstractContextManager[None]:
        """Context in which the LoRA is what the run delivers."""
        return self.problem.adapter.swapped(self.average.tensors) if self.average else nullcontext()

    def generate(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        with self.delivered():
            return self.problem.generate(conditioning, seeds)

    def state(self) -> State:
        tensors = {name: p.detach().cpu().clone() for name, p in self.problem.adapter.parameters().items()}
        return State(tensors | (self.average.state() if self.average else {}))

    def load_state(self, state: State) -> None:
        self.problem.adapter.load(state.tensors)
        if self.average:
            self.average.load_state(state.tensors)

    def export(self, folder: Path) -> None:
        from t2ialign.problem.export import write_export

        with self.delivered():
            write_export(self.problem, folder)

    def check(self, folder: Path) -> str:
        from t2ialign.problem.export import check_export

        with self.delivered():
            return check_export(self.problem, folder)


def load_optimizer(problem: Problem) -> Optimizer:
    """The spec's optimizer, set up on the problem."""
    chosen = problem.spec.optimizer
    optimizer: Optimizer = chosen.build(problem.device)
    with blaming(optimizer.label):
        optimizer.setup(problem)
    return optimizer
