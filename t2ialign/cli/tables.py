"""Tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def comparison(summary: dict[str, Any]) -> Table:
    """Base against tuned, the optimised rewards first."""
    from t2ialign.evaluate import table_header, table_rows

    counts = f"{summary['images']} images of {summary['prompts']} prompts, shared seeds"
    table = Table(title="base against tuned", caption=f"{counts}; ± one s.e. over prompts")
    for column, name in enumerate(table_header(summary)):
        table.add_column(name, justify="right" if column else "left", no_wrap=True)
    for row in table_rows(summary):
        table.add_row(*row)
    return table
