"""What of a run directory a tracker gets: every step once, in order, and the final evaluation. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2ialign.evaluation.comparison import rows


@dataclass
class Step:
    """What one step left behind.

    Attributes:
        metrics: finite numbers; those of timing.jsonl are called "timing/...".
        grid: the picture of ``samples``, where there is one.
    """

    number: int
    metrics: dict[str, float] = field(default_factory=dict)
    grid: Path | None = None


@dataclass
class Final:
    """The evaluation at the end, after ``step`` steps.

    Attributes:
        columns, rows: numbers of base and tuned, a reward a row.
        markdown: the same as a text.
        metrics: "final/<reward>/<column>".
        pairs: the picture of base above tuned.
    """

    step: int
    columns: list[str]
    rows: list[list[Any]]
    markdown: str
    metrics: dict[str, float]
    pairs: Path | None


class Feed:
    """Reads on where it stopped.

    Args:
        path: the run directory.
        after: the last step that was sent before; -1: none.
        evaluated: mark of the final evaluation that was sent before.
    """

    def __init__(self, path: Path, after: int = -1, evaluated: int = 0) -> None:
        self.path, self.after, self.evaluated = path, after, evaluated
        self._waiting: dict[int, Step] = {}
        self._places = {"metrics": 0, "timing": 0}
        self._timed = -1

    def steps(self, everything: bool = False) -> Iterator[Step]:
        """New steps of which all is written: their time is known. At the end there is no more to wait for."""
        for file, prefix in (("metrics", ""), ("timing", "timing/")):
            for line in self._lines(file):
                number = line.pop("step")
                numbers = {f"{prefix}{name}": value for name, value in line.items() if value is not None}
                self._step(number).metrics.update(numbers)
                if prefix:
                    self._timed = number
        for picture in sorted((self.path / "samples").glob("step-*.png")):
            number = int(picture.stem.removeprefix("step-"))
            if number > self.after:
                self._step(number).grid = picture
        for number in sorted(self._waiting):
            if not everything and number > self._timed:
                break
            step = self._waiting.pop(number)
            if number > self.after:
                self.after = number
                yield step

    def final(self) -> Final | None:
        """The final evaluation, if there is one that was not sent."""
        folder = self.path / "evaluation"
        if not (folder / "summary.json").is_file():
            return None
        mark = (folder / "summary.json").stat().st_mtime_ns
        if mark == self.evaluated:
            return None
        self.evaluated = mark
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        columns = ["base", "mean", "difference", "se", "win_rate"]
        found = list(rows(summary))
        table = [[row.reward, row.variant, row.held_out, *(getattr(row, name) for name in columns)] for row in found]
        metrics = {
            f"final/{row.reward}/{name}": getattr(row, name)
            for row in found
            for name in columns
            if row.variant == "tuned" and getattr(row, name) is not None
        }
        pairs, text = folder / "pairs.png", folder / "table.md"
        return Final(
            max(self.after, 0),
            ["reward", "variant", "held_out", *columns],
            table,
            text.read_text(encoding="utf-8") if text.is_file() else "",
            metrics,
            pairs if pairs.is_file() else None,
        )

    def _step(self, number: int) -> Step:
        return self._waiting.setdefault(number, Step(number))

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Whole lines that were appended since the last look."""
        file = self.path / f"{name}.jsonl"
        if not file.is_file():
            return
        with file.open("rb") as stream:
            stream.seek(self._places[name])
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._places[name] += len(line)
                yield json.loads(line)
