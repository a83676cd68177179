"""Tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from t2ialign.evaluation.comparison import caption, rows, short, table_header, table_rows


def comparison(summary: dict[str, Any]) -> Table:
    """Base against tuned, the optimised rewards first."""
    table = Table(title="base against tuned", caption=f"{caption(summary)}; ± one s.e. over prompts")
    for column, name in enumerate(table_header(summary)):
        table.add_column(name, justify="right" if column else "left", no_wrap=True)
    for row in table_rows(summary):
        table.add_row(*row)
    return table


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
                table.add_row(escape(label), escape(name), short(row.base), short(row.mean), row.measured, row.in_se)
                label = ""
        table.add_section()
    return table
