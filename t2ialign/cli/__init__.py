"""The command line. Importing it imports neither torch nor diffusers."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from t2ialign import __version__, places
from t2ialign.cli import authoring, inspecting, reporting, results, running, serving, starting
from t2ialign.cli.first.init import init
from t2ialign.cli.machine.doctor import doctor
from t2ialign.cli.machine.estimate import estimate
from t2ialign.cli.machine.runs import runs
from t2ialign.cli.score import score
from t2ialign.cli.studies.bench import bench
from t2ialign.cli.studies.push import push
from t2ialign.cli.studies.sweep import sweep
from t2ialign.errors import T2IAlignError, UsageError, culprit
from t2ialign.foreign import shown
from t2ialign.ranks import stops


def with_places(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose paths all go the one way: ``~`` is the home folder, whatever the shell did, and what no file
    system takes is told.
    """

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(one) for one in value]
        try:
            return places.path(str(value)) if isinstance(value, Path) else value
        except ValueError as error:
            raise UsageError(f"the path '{shown(value, 60)}' {error}") from error

    @functools.wraps(command)
    def wrapped(**options: Any) -> None:
        command(**{name: resolved(value) for name, value in options.items()})

    return wrapped


app = typer.Typer(
    name="t2ialign",
    help="Align text-to-image models with rewards. Start with: t2ialign run specs/quickstart.toml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    running.run,
    running.resume,
    inspecting.validate,
    inspecting.plugins,
    estimate,
    doctor,
    runs,
    starting.schema,
    init,
    starting.import_flags,
    results.sample,
    results.eval_,
    results.export,
    reporting.report,
    reporting.compare,
    score,
    bench,
    push,
    sweep,
    serving.serve,
    authoring.new_plugin,
    authoring.check,
):
    app.command(name=command.__name__.strip("_").replace("_", "-"))(with_places(command))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"t2ialign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    show_traceback: bool = typer.Option(False, "--traceback", help="Show where an error comes from; any command."),
) -> None:
    """Align text-to-image models with rewards."""


def _is_told(error: Exception) -> bool:
    """Whether another rank of a run tells of this error: of what all know, one; before they met, one a machine."""
    silent = getattr(error, "silent", None)
    return os.environ.get("LOCAL_RANK", "0") != "0" if silent is None else silent


def main() -> None:
    """Entry point: errors that a user can fix are one message and an exit code, never a traceback."""
    wants_traceback = "--traceback" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--traceback"]
    for number in stops.NUMBERS:
        signal.signal(number, signal.default_int_handler)  # a cluster's stop is a Ctrl-C
    try:
        app()
    except Exception as error:
        if _is_told(error):
            sys.exit(getattr(error, "exit_code", 1))
        who = culprit(error)
        if not isinstance(error, T2IAlignError) and who is None:
            raise  # a bug of ours
        if wants_traceback:
            traceback.print_exc()
        elif trace := getattr(error, "trace", ""):  # of another rank, whose own output may be elsewhere
            typer.echo(trace, err=True)
        message = str(error) if isinstance(error, T2IAlignError) else f"{who} failed: {type(error).__name__}: {error}"
        typer.echo(shown(f"error: {message}"), err=True)
        if not (isinstance(error, T2IAlignError) or wants_traceback):
            typer.echo("with --traceback the command shows where", err=True)
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        typer.echo("interrupted; the newest checkpoint is intact: t2ialign resume RUN_DIRECTORY", err=True)
        sys.exit(130)
