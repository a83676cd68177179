"""Tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from t2ialign.evaluation.comparison import caption, rows, short, table_header, table_rows

WIDE = 100
#: With further samplers, which have their cost beside them.
WIDER = 140


def comparison(summary: dict[str, Any], width: int = WIDE) -> Table:
    """Base against tuned, the optimised rewards first; in few columns without what the report has too."""
    narrow = width < (WIDER if "cost" in summary else WIDE)
    marks = "; * held out" if narrow and summary.get("held_out") else ""
    table = Table(title="base against tuned", caption=f"{caption(summary)}; ± one s.e. over prompts{marks}")
    lines = [table_header(summary), *table_rows(summary)]
    if narrow:
        at = lines[0].index("")
        lines = [_narrowed(line, at) for line in lines]
        lines = _grouped(lines) if "cost" in summary else lines
    for column, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if column else "left", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _narrowed(line: list[str], at: int) -> list[str]:
    """Without the column of arrows ``at``, which join the next one, and without the win rate's interval."""
    name, arrow = line[0].replace(" (held out)", " *"), line[at]
    return [name, *line[1:at], f"{line[at + 1]} {arrow}".strip(), line[at + 2].partition(" (")[0], *line[at + 3 :]]


def _grouped(lines: list[list[str]]) -> list[list[str]]:
    """The base of every reward on a line of its own, and under it the variants without what an image of them cost."""
    header, *rest = lines
    name, base, mean = (header.index(word) for word in ("reward", "base", "mean"))
    variant, blank = header.index("variant"), [""] * (len(header) - mean - 1)
    grouped = [["reward", "mean", *header[mean + 1 :]]]
    for before, line in zip([None, *rest], rest, strict=False):
        if before is None or before[name] != line[name]:
            grouped.append([line[name], line[base], *blank])
        grouped.append([f"  {line[variant]}", *line[mean:]])
    return grouped


def side_by_side(summaries: dict[str, dict[str, Any]], shared: bool) -> Table:
    """Several runs' evaluations, reward by reward.

    Args:
        summaries: ``summary.json`` by run.
        shared: whether all runs were evaluated on the same prompts and seeds.
    """
    where = "all on the same prompts and seeds" if shared else "NOT on the same prompts and seeds: compare with care"
    table = Table(title="tuned against each run's base", caption=f"{where}; ± one s.e. over prompts")
    for words in ("reward", "run"):
        table.add_column(words, overflow="fold")
    for number in ("base", "tuned", "difference", "in s.e."):
        table.add_column(number, justify="right", no_wrap=True)
    tuned = [(name, row) for name, summary in summaries.items() for row in rows(summary) if row.variant == "tuned"]
    for reward in dict.fromkeys(row.reward for _, row in tuned):
        label = reward
        for name, row in tuned:
            if row.reward == reward:
                table.add_row(label, name, short(row.base), short(row.mean), row.measured, row.in_se)
                label = ""
        table.add_section()
    return table
