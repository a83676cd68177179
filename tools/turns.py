"""Timing of several things side by side on a machine that does other work, too: shared by the benches.

All run once in every round, in an order that turns from round to round, and what is compared are the ratios within a
round: whatever slows a round down slows all of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Turns:
    """Seconds of each thing in each round.

    Attributes:
        seconds: name -> one number a round.
    """

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def best(self, name: str, other: str) -> float:
        """How many times as fast ``name`` is, each in its fastest round: what an idle machine would be nearest to."""
        return min(self.seconds[other]) / min(self.seconds[name])

    def faster(self, name: str, other: str) -> tuple[float, float, float]:
        """How many times as fast ``name`` is: the median of the rounds' ratios, and their quartiles."""
        ratios = [b / a for a, b in zip(self.seconds[name], self.seconds[other], strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return middle, low, high


def clock(device: torch.device) -> float:
    """Seconds: of this process's CPU where it has one thread, else of the wall once the device's queue is empty."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def in_turns(runs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> Turns:
    """Time every run once a round; nothing warms up here."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            start = clock(device)
            runs[name]()
            seconds[name].append(clock(device) - start)
    return Turns(seconds)


def ratio(found: tuple[float, float, float] | None) -> str:
    """Median and quartiles, for a table."""
    return f"{found[0]:.2f} ({found[1]:.2f}-{found[2]:.2f})" if found else "not measured"
