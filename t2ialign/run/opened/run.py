"""A run from Python and in notebooks: what it gave, without the command line. torch comes only when something runs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from t2ialign.evaluation import comparison
from t2ialign.report.pictures import Picture
from t2ialign.run.display import Display
from t2ialign.run.opened.loading import loading
from t2ialign.spec import parse as specs
from t2ialign.spec import toml
from t2ialign.spec.machine import check_machine
from t2ialign.spec.model import Spec
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir

LORA = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class RunImage:
    """An evaluated image: its file, what it was drawn from, and reward -> score (None: no finite number)."""

    path: Path
    prompt: str
    seed: int
    scores: dict[str, float | None]

    def _repr_html_(self) -> str:
        picture, words = Picture.read(self.path), html.escape(self.prompt)
        return f'<figure><img src="{picture.uri}" width="128" alt="{words}"><figcaption>{words}</figcaption></figure>'


class Table(list[dict[str, Any]]):
    """Lines of numbers, which notebooks show as a table and ``pandas.DataFrame`` takes as it is."""

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for line in self for name in line))

    def of(self, *names: str) -> Table:
        """These columns alone, in this order."""
        return Table({name: line[name] for name in names if name in line} for line in self)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        shown = [[_cell(line.get(name)) for name in self.columns] for line in self]
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells in shown)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Run:
    """A run directory.

    Attributes:
        path: of the directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._directory = RunDir.open(self.path)

    @cached_property
    def spec(self) -> Spec:
        """The resolved spec."""
        return self._directory.spec()

    @property
    def summary(self) -> dict[str, Any]:
        """The last evaluation, as in ``evaluation/summary.json``; empty before the first."""
        return self._directory.summary() or {}

    @property
    def metrics(self) -> Table:
        """One line a step: metrics, seconds, memory."""
        timing = {line["step"]: line for line in self._directory.timing()}
        return Table({**line, **timing.get(line["step"], {})} for line in self._directory.history())

    @property
    def images(self) -> dict[str, list[RunImage]]:
        """Variant ("base", "tuned", ...) -> its evaluated images, where they were saved; the same order in each."""
        folder = self.path / "evaluation"
        lines = files.read_json_lines(folder / "scores.jsonl")
        return {
            variant: [
                RunImage(path, line["prompt"], line["seed"], line[variant])
                for row, line in enumerate(lines)
                if (path := folder / variant / f"{row:05d}.png").exists()
            ]
            for variant in self.summary.get("variants", {})
        }

    @property
    def lora(self) -> Path | None:
        """The exported LoRA; None before the export, and for runs that deliver something else."""
        path = self.path / "export" / LORA
        return path if path.exists() else None

    @property
    def report(self) -> Path:
        """The page about the run, written as the run stands."""
        from t2ialign.report import page

        return page.write(self._directory)

    def resume(
        self, overrides: Mapping[str, Any] | Sequence[str] = (), quiet: bool = False, display: Display | None = None
    ) -> Run:
        """Go on after a stop, or beyond the end with {"run.steps": N}."""
        display = display or Display(quiet=quiet)
        display.say("loading libraries")
        with loading():
            from t2ialign.run import runner

        return Run(runner.resume(self.path, display, toml.assignments(overrides)).path)

    def __repr__(self) -> str:
        steps = self._directory.metrics()
        return f"Run({str(self.path)!r}, {steps[-1]['step'] if steps else 0} steps)"

    def _repr_html_(self) -> str:
        """Notebooks show the table of base against tuned and the pairs."""
        text = f"<p><b>{html.escape(self.path.name)}</b></p>"
        if summary := self.summary:
            header, *lines = [comparison.table_header(summary), *comparison.table_rows(summary)]
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
            text += f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            text += f"<p>{html.escape(comparison.caption(summary))}</p>"
        pairs = self.path / "evaluation" / "pairs.png"
        if pairs.exists():
            picture = Picture.read(pairs, 2)
            text += f'<img src="{picture.uri}" alt="base above tuned: {html.escape("; ".join(picture.prompts))}">'
        return text


def start(
    spec: Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    quiet: bool = False,
    display: Display | None = None,
) -> Run:
    """Run a spec to its end; see ``t2ialign.run``."""
    display = display or Display(quiet=quiet)
    parsed = specs.load(spec, toml.assignments(overrides))
    check_machine(parsed)
    display.say("loading libraries")
    with loading():
        from t2ialign.run import runner

    return Run(runner.start(parsed, display).path)


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else html.escape(str(value)) if value is not None else ""
