"""What sampling costs, by counting the network calls that really happen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from t2ialign.parts.denoiser import Denoiser


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
