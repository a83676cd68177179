"""The errors that a user can fix. The CLI prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class T2IAlignError(Exception):
    """Base of every error whose message tells the user what to change."""

    exit_code = 1


class UsageError(T2IAlignError):
    """The command line, a file it names, or a checkpoint is not usable as given."""

    exit_code = 2


@dataclass(frozen=True)
class SpecProblem:
    """One thing wrong with a spec.

    Attributes:
        key: dotted key with list indices, for example ``reward[0].weight``.
        value: the offending value as TOML would show it; empty when a key is missing.
        allowed: what is wrong and what would be accepted, one sentence.
        suggestion: the nearest allowed word, or empty.
    """

    key: str
    value: str
    allowed: str
    suggestion: str = ""

    def __str__(self) -> str:
        shown = f"{self.key} = {self.value}" if self.value else self.key
        hint = f" Did you mean '{self.suggestion}'?" if self.suggestion else ""
        return f"{shown}: {self.allowed}{hint}"


class SpecError(UsageError):
    """Everything that is wrong with one spec, found in one pass."""

    def __init__(self, source: str, problems: Sequence[SpecProblem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = [f"{source}: {count}", *(f"  {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines))


class RewardError(T2IAlignError):
    """A reward gave a score that is not a finite number.

    Attributes:
        image: the offending image (3, H, W), so that the run can save it.
    """

    def __init__(self, message: str, image: Tensor | None = None) -> None:
        super().__init__(message)
        self.image = image


class Unavailable(T2IAlignError):
    """Something that runs elsewhere does not answer; the run can go on later from where it stopped."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: a scheduler may try again


class ExportError(T2IAlignError):
    """An exported file does not load, or does not give the images that the run gave."""


class Unchanged(ExportError):
    """What was exported is as it was before the first step."""


class PartError(T2IAlignError):
    """A part of a plugin raised, or broke its contract; the message names it and its package."""


@contextmanager
def blaming(who: str) -> Iterator[None]:
    """Remember whose code an exception comes from, the innermost one first; see ``culprit``. Its type stays, but
    that of SystemExit, which would end a command as if all were well."""
    try:
        yield
    except SystemExit as error:
        failure = RuntimeError(f"it exited (SystemExit: {error.code})")
        failure.t2ialign_culprit = who  # type: ignore[attr-defined]
        raise failure from error
    except Exception as error:
        if culprit(error) is None:
            error.t2ialign_culprit = who  # type: ignore[attr-defined]
        raise


def culprit(error: BaseException) -> str | None:
    """The part that an exception came from, or None where it is the core's own."""
    found: str | None = getattr(error, "t2ialign_culprit", None)
    return found


def nearest(word: str, words: Iterable[str]) -> str:
    """The closest of ``words``, or an empty string when none is close."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)), "")
