"""``push``: a run's result on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from t2ialign.cli.running import RunFolder
from t2ialign.errors import UsageError
from t2ialign.storage.run_directory import RunDir


def push(
    run: RunFolder,
    repo: Annotated[str | None, typer.Option(help="Repository, NAME or OWNER/NAME; default: the run's name.")] = None,
    public: Annotated[bool, typer.Option("--public", help="For everyone to see; default: private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, and send nothing.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder; default: RUN/push.")] = None,
    prompts: Annotated[bool, typer.Option("--prompts", help="Send the prompt files too.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="The base's licence, for example apache-2.0.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Send what a finished run delivers to the hub: export, card with results and images, spec. Private by default."""
    from t2ialign.publish import folder as folders

    found = RunDir.open(run)
    target = out or run / "push"
    listed = folders.make(found, target, prompts, licence)
    name = repo or run.resolve().name
    typer.echo(f"{target}, for the {'PUBLIC' if public else 'private'} repository {name}:")
    for file in listed:
        typer.echo(f"  {(target / file).stat().st_size:>12,}  {file.as_posix()}")
    if dry_run:
        typer.echo("nothing was sent (--dry-run)")
        return
    if not yes:
        try:
            sure = typer.confirm("send this?")
        except typer.Abort:
            sure = False
        if not sure:
            raise UsageError("nothing was sent; --yes sends without a question")
    from t2ialign.publish import hub

    typer.echo(f"sent: {hub.push(target, name, public)}")
