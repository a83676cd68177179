"""Steps on many workers, on paper: arithmetic from one worker's step and from what is exchanged. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from t2ialign.estimate.estimate import Estimate
from t2ialign.spec.model import Spec

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 5000, 10_000)
#: Assumed: seconds for a message to reach the next worker, and bytes a second between two.
LATENCY, BANDWIDTH = 50e-6, 1.25e9


@dataclass(frozen=True)
class Scaling:
    """A step of ``seconds`` on one worker, in ``pieces`` that cannot be divided further.

    Attributes:
        message: bytes that all workers sum or gather in a step.
        pieces: members, or images: more workers than those have nothing to do.
    """

    seconds: float
    pieces: int
    message: int

    def at(self, workers: int) -> float:
        """Seconds of a step: the largest share of the pieces, and a ring: W - 1 latencies, twice the bytes."""
        share = math.ceil(self.pieces / workers) / self.pieces
        exchange = (
            (workers - 1) * LATENCY + 2 * (workers - 1) / workers * self.message / BANDWIDTH if workers > 1 else 0
        )
        return self.seconds * share + exchange

    def pays_until(self, least: float = 0.5) -> int:
        """The largest number of workers in the table whose efficiency is at least ``least``."""
        return max(w for w in WORKERS if self.seconds / self.at(w) / w >= least)


def scaling(spec: Spec, found: Estimate, speed: float) -> Scaling:
    """Without gradients only scores are exchanged; with them, the LoRA's gradients (float32) as well."""
    scores = found.images * len(spec.rewards) * 4
    population = getattr(spec.optimizer_config, "population", None)
    gradients = 0
    if spec.keeps != "nothing" and spec.uses_lora:
        gradients = found.memory["LoRA, gradients, solver"] // 4
    return Scaling(found.operations["step"] / speed, population or found.images, scores + gradients)


def table(spec: Spec, found: Estimate, speed: float) -> Iterator[str]:
    made = scaling(spec, found, speed)
    yield (
        f"SIMULATION, not measured: a step of {made.seconds:.3g} s on one worker in {made.pieces} pieces,"
        f" {made.message:,} bytes exchanged, {LATENCY * 1e6:.0f} µs and {BANDWIDTH / 1.25e8:.0f} Gbit/s between workers"
    )
    yield f"  {'workers':>8}{'step, s':>12}{'speed-up':>10}{'efficiency':>12}"
    for workers in WORKERS:
        seconds = made.at(workers)
        faster = made.seconds / seconds
        yield f"  {workers:>8,}{seconds:>12.3g}{faster:>10.1f}{faster / workers:>11.0%}"
    yield f"  beyond {made.pays_until():,} workers more than half of the machines' time is lost"
