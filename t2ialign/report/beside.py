"""Several runs on one page: their evaluations beside each other, their curves over one another. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ialign.evaluation import comparison
from t2ialign.report import curves
from t2ialign.report.changes import Shown, pairs
from t2ialign.report.page import history, templates
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir

COLOURS = 4  # that the page tells apart
PROMPTS = 6  # with pictures


def write(runs: Mapping[str, RunDir], shared: bool, out: Path) -> None:
    """Write the page.

    Args:
        runs: evaluated ones, by the names that they have on the page.
        shared: whether all were evaluated on the same prompts and seeds.
    """
    files.write_text(out, page(runs, shared))


def page(runs: Mapping[str, RunDir], shared: bool) -> str:
    """One HTML page that loads nothing from anywhere."""
    summaries = {name: run.summary() or {} for name, run in runs.items()}
    return (
        templates()
        .get_template("beside.html")
        .render(
            names=list(runs),
            shared=shared,
            rewards=_rewards(summaries),
            groups=curves.grouped(*(history(run) for run in runs.values())),
            pictures=_pictures(runs) if shared else {},
            plot=curves,
            short=comparison.short,
            colours=COLOURS,
        )
    )


def _rewards(summaries: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, comparison.Row]]:
    """Reward -> run -> what it gave."""
    found: dict[str, dict[str, comparison.Row]] = {}
    for name, summary in summaries.items():
        for row in comparison.rows(summary):
            if row.variant == "tuned":
                found.setdefault(row.reward, {})[name] = row
    return found


def _pictures(runs: Mapping[str, RunDir]) -> dict[str, dict[str, Shown]]:
    """Prompt -> the first run's base, and every run's image of the same seed, where all saved some."""
    found: dict[str, dict[str, Shown]] = {}
    for name, run in runs.items():
        for pair in pairs(run):
            found.setdefault(pair.prompt, {"base": pair.base})[name] = pair.tuned
    whole = {prompt: shown for prompt, shown in found.items() if len(shown) == len(runs) + 1}
    return dict(list(whole.items())[:PROMPTS])
