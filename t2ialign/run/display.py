"""Live progress: a panel on a terminal, plain lines elsewhere, silence on all ranks but the first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text


class Display:
    """What a person sees of a run.

    Args:
        console: where to write; standard error by default, so that ``--json`` keeps standard output clean.
        quiet: write nothing (ranks other than the first).
        interval: seconds between plain lines when the output is no terminal.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False, interval: float = 10.0) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet = quiet
        self.interval = interval
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """One line about a stage."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A progress bar with ETA for ``total`` units, ``done`` of them already behind us."""
        bar = Bar(self, title, total, done)
        with bar:
            yield bar


class _Lines(Progress):
    """Step, bar and times on a line of their own, which never yields its place; the latest numbers wrap below it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if note := task.fields["note"]:
                yield Text(f"  {note}", overflow="fold")


class Bar:
    """One progress bar; ``advance`` may carry a note with the latest numbers."""

    def __init__(self, display: Display, title: str, total: int, done: int) -> None:
        self.display, self.title, self.total = display, title, total
        self.done = self._start_done = done
        self._started = time.monotonic()
        self._live = display.console.is_terminal and not display.quiet
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}"),
        ]
        self._progress = _Lines(*columns, console=display.console, disable=not self._live)
        self._task = self._progress.add_task(title, total=total, completed=done, note="", eta="-:--")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        self._progress.update(self._task, completed=self.done, note=note, eta=self.eta(now))
        due = now - self.display._last_line >= self.display.interval or self.done == self.total
        if not self._live and due and not self.display.quiet:
            self.display._last_line = now
            self.display.say(f"{self.title} {self.done}/{self.total}  eta {self.eta(now)}  {note}".rstrip())

    def eta(self, now: float) -> str:
        """Remaining time at the mean pace since the start of this bar."""
        pace = (now - self._started) / max(1, self.done - self._start_done)
        seconds = int(pace * (self.total - self.done))
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
