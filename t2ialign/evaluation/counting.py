"""What sampling costs, by counting the network calls that really happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from t2ialign.parts.denoiser import Denoiser
from t2ialign.problem.problem import Problem


@dataclass
class Count:
    """Network calls of denoisers; classifier-free guidance counts once.

    Attributes:
        calls: one after the other: the sequential depth.
        rows: summed over their batches: the evaluations of all images.
    """

    calls: int = 0
    rows: int = 0


@contextmanager
def counting() -> Iterator[Count]:
    """Count every call of every denoiser while the block runs."""
    count = Count()

    def add(rows: int) -> None:
        count.calls += 1
        count.rows += rows

    Denoiser.watchers.append(add)
    try:
        yield count
    finally:
        Denoiser.watchers.remove(add)


@contextmanager
def told(problem: Problem, unit: Callable[[int, int], AbstractContextManager[Callable[[int], None]]]) -> Iterator[None]:
    """Inside is one step, whose network calls are told: those of denoisers, or the images of autoregressive models.

    Args:
        unit: given the calls that this rank is expected to make in the step, and the images of the step, what is told
            the rows of every call.
    """
    spec = problem.spec
    plan = spec.optimizer_config.plan(spec)
    each = plan.evaluations or (spec.sampler_config.evaluations() if spec.sampler else 1)
    with unit(-(-plan.images_per_step * each // problem.world.size), plan.images_per_step) as tell:
        for watchers in (Denoiser.watchers, Problem.watchers):
            watchers.append(tell)
        try:
            yield
        finally:
            for watchers in (Denoiser.watchers, Problem.watchers):
                watchers.remove(tell)
