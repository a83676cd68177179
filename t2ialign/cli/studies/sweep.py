"""``sweep``: many runs of one spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from t2ialign.cli.running import quiet_libraries


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep, a TOML file: a spec, and values for keys.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Run a spec with many settings; the marginal effect of every key, and the winner on held-out prompts.

    A sweep that was stopped goes on with the same command.
    """
    from t2ialign.sweep.spec import Sweep

    asked = Sweep(file)
    quiet_libraries()
    from t2ialign.sweep import effects
    from t2ialign.sweep import sweep as sweeps

    found = sweeps.run(asked)
    if as_json:
        typer.echo(json.dumps({key: value for key, value in found.items() if key != "folder"}, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    header, *lines = effects.table(found["runs"], asked.reward)
    table = Table(*map(escape, header), caption=effects.caption(found["runs"], asked.reward))
    for line in lines:
        table.add_row(*map(escape, line))
    console = Console()
    console.print(table)
    page = Path(found["folder"]) / "report.html"
    console.print(f"{page}  [dim]with the effect of every key[/dim]", highlight=False, soft_wrap=True)
