"""Live progress: a panel on a terminal, plain lines elsewhere, silence on all ranks but the first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

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

from t2ialign.foreign import shown
from t2ialign.run.chatter import Chatter

#: Seconds after which a unit of a bar shows how far it is itself.
SLOW = 5.0
#: Seconds of the past that decide a unit's pace: what was e times as long ago counts e times less.
SPAN = 30.0


class Terminal(Console):
    """Shows texts as they are, whoever wrote them: no markup, no emoji, and no escape sequence of theirs works."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def place(self, what: object, meaning: str) -> None:
        """A path or a command, on one line that can be copied, and what it is for."""
        self.print(str(what), Text(f" {meaning}", style="dim"), soft_wrap=True)


class Display:
    """What a person sees of a run.

    Args:
        console: where to write; standard error by default, so that ``--json`` keeps standard output clean.
        quiet: show nothing (ranks other than the first).
        interval: seconds between plain lines, where the output is no terminal and in the log.
        chatter: keeps a log of what is said here, and of what libraries say.
    """

    def __init__(
        self,
        console: Console | None = None,
        quiet: bool = False,
        interval: float = 60.0,
        chatter: Chatter | None = None,
    ) -> None:
        self.console = console or Terminal(file=chatter.terminal if chatter else None, stderr=True)
        self.quiet = quiet
        self.interval = interval
        self.chatter = chatter
        self.started = time.monotonic()
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """One line about a stage."""
        self.log(text)
        if not self.quiet:
            self.console.print(shown(text), markup=False, emoji=False, soft_wrap=True)

    def log(self, text: str) -> None:
        """One line for the log alone."""
        if self.chatter:
            self.chatter.write(f"{time.strftime('%H:%M:%S')} {shown(text)}\n")

    def kept_in(self, file: Path) -> AbstractContextManager[None]:
        """Inside, the log is this file."""
        return self.chatter.kept_in(file) if self.chatter else nullcontext()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Inside, prompts that are encoded have a bar."""
        from t2ialign.storage import embeds  # brings torch

        with ExitStack() as stack:
            bars: list[Bar] = []

            def watch(done: int, total: int) -> None:
                if done == 1 or not bars:
                    bars[:] = [stack.enter_context(self.bar("encoding", total, done - 1))]
                bars[0].advance(1)
                if done == total:
                    stack.pop_all().close()

            embeds.watchers.append(watch)
            try:
                yield
            finally:
                embeds.watchers.remove(watch)

    @contextmanager
    def downloading(self) -> Iterator[None]:
        """Inside, every repository of the hub that is downloaded has a bar, in megabytes."""
        from t2ialign.spec import checkpoints

        @contextmanager
        def watch(reference: str) -> Iterator[Callable[[int, int], None]]:
            with ExitStack() as stack:
                bars: list[Bar] = []

                def tell(done: int, total: int) -> None:
                    whole = -(-total // 2**20)
                    if not bars:
                        bars.append(stack.enter_context(self.bar("downloading, MB", whole)))
                    bars[0].reach(done // 2**20, whole, reference)

                yield tell
                if bars:
                    bars[0].reach(bars[0].total, bars[0].total, reference)

        checkpoints.watchers.append(watch)
        try:
            yield
        finally:
            checkpoints.watchers.remove(watch)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A progress bar with ETA for ``total`` units, ``done`` of them already behind us."""
        bar = Bar(self, title, total, done)
        with bar:
            yield bar


class _Lines(Progress):
    """Step, bar and times on a line of their own, which never yields its place; below it how far a slow step is, and
    the latest numbers, which wrap."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            for line in (task.fields["inside"], task.fields["note"]):
                if line:
                    yield Text(f"  {shown(line)}", overflow="fold")


class Bar:
    """One progress bar; ``advance`` may carry a note with the latest numbers.

    Attributes:
        rest: seconds of work that follows the last unit and belongs to the ETA.
    """

    def __init__(self, display: Display, title: str, total: int, done: int) -> None:
        self.display, self.title, self.total = display, title, total
        self.done = self._start_done = done
        self._started = time.monotonic()
        self.rest = 0.0
        self._slow = False
        self._inside = 0  # what the unit before told of itself
        self._live = display.console.is_interactive and not display.quiet  # a dumb terminal gets lines
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}"),
        ]
        self._progress = _Lines(*columns, console=display.console, disable=not self._live, redirect_stderr=False)
        self._task = self._progress.add_task(shown(title), total=total, completed=done, note="", inside="", eta="-:--")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        self._progress.update(self._task, completed=self.done, note=note, inside="", eta=self.eta(now))
        due = now - self.display._last_line >= self.display.interval or self.done == self.total
        if due:
            self.display._last_line = now
            line = f"{self.title} {self.done}/{self.total}  eta {self.eta(now)}  {note}".rstrip()
            (self.display.log if self._live else self.display.say)(line)

    def reach(self, done: int, total: int, note: str = "") -> None:
        """The same where the total is found out on the way."""
        self.total = total
        self._progress.update(self._task, total=total)
        if done > self.done:
            self.advance(done - self.done, note)

    @contextmanager
    def unit(self, calls: int, images: int) -> Iterator[Callable[[int], None]]:
        """Inside, the next unit is under way, and shows how far where it takes long. Gives what tells of network calls.

        Args:
            calls: so many are expected the first time, from then on as many as the last time.
            images: that the unit draws, on all ranks.
        """
        expected = self._inside or calls
        began = time.monotonic()
        pace, done = Pace(began), 0

        def tell(count: int) -> None:
            nonlocal done
            now, done = time.monotonic(), done + count
            pace.add(count, now)
            self._slow |= now - began > SLOW
            if not self._slow:
                return
            words = f"{done:,} network calls"
            if done <= expected:
                what = "images" if expected == images else "network calls"
                speed, rest = pace.speed * images / expected, (expected - done) / max(pace.speed, 1e-9)
                words = f"{done:,}/{expected:,} {what}  {speed:.3g} images/s  eta {clock(rest)}"
            self._progress.update(self._task, inside=words)
            if now - max(began, self.display._last_line) >= self.display.interval:
                self.display._last_line = now
                line = f"{self.title} {self.done + 1}/{self.total} is under way: {words}"
                (self.display.log if self._live else self.display.say)(line)

        yield tell
        self._inside = done

    def eta(self, now: float) -> str:
        """Remaining time at the mean pace since the start of this bar, and the rest."""
        pace = (now - self._started) / max(1, self.done - self._start_done)
        return clock(pace * (self.total - self.done) + self.rest)


class Pace:
    """Units a second, by an exponential average over time.

    Attributes:
        speed: of the last ``SPAN`` seconds, mostly; above 0 once a unit was added.
    """

    def __init__(self, now: float) -> None:
        self.speed, self._last, self._units, self._seconds = 0.0, now, 0.0, 0.0

    def add(self, count: int, now: float) -> None:
        kept = math.exp((self._last - now) / SPAN)
        self._units = self._units * kept + count
        self._seconds = self._seconds * kept + now - self._last
        self._last, self.speed = now, self._units / max(self._seconds, 1e-6)


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
