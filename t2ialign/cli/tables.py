"""Tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from t2ialign.comparison import caption, table_header, table_rows


def comparison(summary: dict[str, Any]) -> Table:
    """Base against tuned, the optimised rewards first."""
    table = Table(title="base against tuned", caption=f"{caption(summary)}; ± one s.e. over prompts")
    for column, name in enumerate(table_header(summary)):
        table.add_column(name, justify="right" if column else "left", no_wrap=True)
    for row in table_rows(summary):
        table.add_row(*row)
    return table
