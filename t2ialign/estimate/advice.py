"""What to change in a spec so that a run fits into a memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from t2ialign.errors import SpecError, UsageError
from t2ialign.estimate.estimate import Estimate, estimate
from t2ialign.spec import parse as specs

#: What a driver and fragments leave of a card.
USABLE = 0.92
#: In the order of what they cost; each is tried on top of those before.
SLOWER = (
    ["backend.vae_slicing=true"],
    ["run.micro_batch=8"],
    ["run.micro_batch=1"],
    ['backend.gradient_checkpointing=["network", "decoder"]'],
)
CHANGES = (
    *SLOWER,
    ['backend.offload="model"'],
    ['backend.offload="blocks"'],
)
QUANTISED = (['backend.quantization.kind="int8"'], ['backend.quantization.kind="nf4"'])
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_size(text: str) -> int:
    """Bytes of "24GB", "512 MiB"; units are powers of 1024, as those of cards are.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?\s*", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"--memory {text}: write a size such as 24GB")
    return round(float(found[1]) * _UNITS[found[2].upper()])


def fits(found: Estimate, memory: int) -> bool:
    return found.peak <= usable(memory)


def usable(memory: int) -> float:
    """Bytes of a card that a run can have."""
    return USABLE * memory


def to_fit(
    spec: Path, overrides: Sequence[str], memory: int, on_cpu: bool | None = None
) -> tuple[list[str], Estimate] | None:
    """The first list of changes, as ``--set`` takes them, with which a spec fits; None where none helps.

    Quantisation and offload exclude each other: the first way that fits is taken.
    """
    for changes in ladders():
        try:
            found = estimate(specs.load(spec, [*overrides, *changes]), on_cpu)
        except (SpecError, UsageError):  # not for this backend or optimizer
            continue
        if fits(found, memory):
            return [change for change in changes if change not in overrides], found
    return None


def ladders() -> Iterator[list[str]]:
    """Changes that are worth a try, in the order of what they cost."""
    yield from _cumulative(CHANGES)
    yield from list(_cumulative((*SLOWER, *QUANTISED)))[len(SLOWER) :]


def _cumulative(ladder: Sequence[list[str]]) -> Iterator[list[str]]:
    """Each change on top of those before; a later value of a key takes the place of an earlier one."""
    keys: dict[str, str] = {}
    for change in ladder:
        for text in change:
            keys[text.partition("=")[0]] = text
        yield list(keys.values())
