"""``report`` and ``compare``: what run directories tell, read without weights and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from t2ialign import places
from t2ialign.cli.running import RunFolder
from t2ialign.errors import UsageError
from t2ialign.foreign import shown
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir


def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page; default: RUN/report.html.")
    ] = None,
) -> None:
    """Write a run's page as it stands: table, images, curves, settings, in one file that loads nothing."""
    found = RunDir.open(run)
    _check_page(out)
    from t2ialign.report import page as pages

    typer.echo(shown(f"wrote {pages.write(found, out)}"))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run directories with an evaluation.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs' summaries as JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Also a page: tables, curves over one another, images."),
    ] = None,
) -> None:
    """Put the evaluations of several runs side by side, reward by reward."""
    _check_page(out)
    found = [RunDir.open(path) for path in dict.fromkeys(runs)]
    if len(found) < 2:
        raise UsageError("compare needs at least two runs")
    summaries: dict[str, dict[str, Any]] = {}
    for run in found:
        summary = run.summary()
        if summary is None:
            raise UsageError(f"{run.path} has no evaluation yet; finish the run, or: t2ialign eval {run.path}")
        summaries[str(run.path)] = summary
    images = [_evaluated(run) for run in found]
    shared = images.count(images[0]) == len(images)
    names = [path.resolve().name for path in map(Path, summaries)]
    labels = names if len(set(names)) == len(names) else list(summaries)
    if out is not None:
        from t2ialign.report import beside

        beside.write(dict(zip(labels, found, strict=True)), shared, out)
    if as_json:
        typer.echo(json.dumps({"shared": shared, "runs": summaries}, indent=2))
        return
    from t2ialign.cli.tables import side_by_side
    from t2ialign.run.display import Terminal

    Terminal().print(side_by_side(dict(zip(labels, summaries.values(), strict=True)), shared))
    if out is not None:
        typer.echo(shown(f"wrote {out}"))


def _check_page(out: Path | None) -> None:
    if out is not None and (reason := places.unwritable_file(out)):
        raise UsageError(f"--out {out}: {reason}; must be a file in an existing folder")


def _evaluated(run: RunDir) -> list[tuple[Any, Any]]:
    """Prompt and seed of every evaluated image."""
    lines = files.read_json_lines(run.path / "evaluation" / "scores.jsonl")
    return [(line["prompt"], line["seed"]) for line in lines]
