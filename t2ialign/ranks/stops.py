"""A person, a scheduler or a cluster asks this process to stop: at once, or where the work can be left. No torch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

#: Ctrl-C, a cluster's stop, and what Slurm sends before its limit; not every system has all of them.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
NUMBERS = [signal.Signals(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]


class Stops:
    """What this process was asked.

    Attributes:
        asked: number of the first signal; 0 for none.
        patient: the first signal only leaves word in ``asked``; the second always raises ``KeyboardInterrupt``.
    """

    asked = 0
    patient = False

    def note(self, number: int, frame: object) -> None:
        """The handler: no input, no output, nothing that another rank would have to answer."""
        again, self.asked = bool(self.asked), number
        if again or not self.patient:
            raise KeyboardInterrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the first signal lets the work come to a good place."""
        before, self.patient = self.patient, True
        try:
            yield
        finally:
            self.patient = before


#: Signals belong to the process, and so does this.
process = Stops()


@contextmanager
def watched(patient: bool) -> Iterator[Stops]:
    """Inside, the signals in ``NAMES`` are requests to stop.

    Args:
        patient: also the first one waits everywhere: ranks must leave together.
    """
    process.asked, process.patient = 0, patient
    previous = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        for number in NUMBERS:
            signal.signal(number, process.note)
    except ValueError:  # not in the main thread: nobody sends signals here
        previous.clear()
    leaving = False
    try:
        yield process
    except BaseException:
        leaving = patient  # a launcher that sees one rank end signals the others, which are about to say why
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if leaving else handler)


def word(number: int, rank: int | None = None) -> str:
    """A signal's name, and the rank that got it."""
    name = signal.Signals(number).name
    return name if rank is None else f"{name} at rank {rank}"
