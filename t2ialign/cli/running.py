"""``run`` and ``resume``."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2ialign import places
from t2ialign.cli.first import completion
from t2ialign.errors import UsageError
from t2ialign.run.chatter import FORMAT, Plain
from t2ialign.storage.run_directory import RunDir

if TYPE_CHECKING:
    from t2ialign.run.display import Display

_TOKENIZERS = ("TOKENIZERS_PARALLELISM", "false")  # else a fork warning for every data worker

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a TOML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the spec; the value is TOML. Repeatable.",
        autocompletion=completion.keys,
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.runs)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors; the log has the rest.")]
LogFile = Annotated[
    Path | None, typer.Option("--log-file", metavar="FILE", help="A second log, beside log.txt in the run directory.")
]


def run(spec: SpecFile, overrides: Overrides = None, quiet: Quiet = False, log_file: LogFile = None) -> None:
    """Run a spec: optimise, evaluate base against tuned, export."""
    with _watched(f"reading {spec}", quiet, log_file) as display:
        from t2ialign.run.opened.run import start

        path = start(spec, overrides or [], display=display).path
    _show(path, display)


def resume(run: RunFolder, overrides: Overrides = None, quiet: Quiet = False, log_file: LogFile = None) -> None:
    """Continue a run that was stopped or killed, from its newest checkpoint; --set run.steps=N goes beyond its end."""
    with _watched(f"reading {run}", quiet, log_file) as display:
        from t2ialign.run.opened.run import Run

        path = Run(run).resume(overrides or [], display=display).path
    _show(path, display)


@contextmanager
def _watched(first: str, quiet: bool, log_file: Path | None) -> Iterator[Display]:
    """A display whose first line comes before anything else. Inside, libraries' words go into the first rank's log."""
    from t2ialign.run.chatter import Chatter
    from t2ialign.run.display import Display

    if log_file is not None and (reason := places.unwritable(log_file.absolute().parent)):
        raise UsageError(f"--log-file {log_file}: {reason}")
    if os.environ.get("RANK", "0") != "0":
        quiet_libraries()
        yield Display(quiet=True)
        return
    os.environ.setdefault(*_TOKENIZERS)
    chatter = Chatter()
    with chatter.collected(log_file):
        display = Display(quiet=quiet, chatter=chatter)
        display.say(first)
        yield display


def quiet_libraries() -> None:
    """Keep notices that no user can act on out of the progress display; call it before torch is imported."""
    os.environ.setdefault(*_TOKENIZERS)
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Plain(FORMAT))
    for chatter in ("torchao", "torch.utils._pytree"):
        logging.getLogger(chatter).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers|huggingface_hub)(\..*)?")


def _show(path: Path, display: Display) -> None:
    """The last screen: the table, where everything is, how long it took, and what to do next."""
    if display.quiet:
        return
    import json

    from t2ialign.cli.tables import comparison
    from t2ialign.run.display import Terminal

    console, run = Terminal(), RunDir(path)
    summary = json.loads((path / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    console.print(comparison(summary, console.width))

    for name, meaning in (
        ("report.html", "the run on one page"),
        ("evaluation/pairs.png", "base above tuned, same prompts and noise"),
        ("samples", "grids at fixed prompts and noise"),
        ("export", "what the run delivers; its README.md says how to use it"),
        ("log.txt", "all that was said, by libraries too"),
    ):
        if (path / name).exists():
            console.place(str(path / name), meaning)
    peak = max((line.get("peak_memory_mb") or 0.0 for line in run.timing()), default=0.0)
    memory = f", peak memory {peak:,.0f} MB" if peak else ""
    console.print(f"took {span(time.monotonic() - display.started)}{memory}")
    opener = {"darwin": "open", "win32": "start"}.get(sys.platform, "xdg-open")
    console.place(f"next: {opener} {shlex.quote(str(path / 'report.html'))}", "look at it")
    if any((path / "export").glob("*.safetensors")) and run.spec().uses_lora:
        folder, spec = shlex.quote(str(path / "export")), shlex.quote(str(path / "spec.toml"))
        console.place(f'next: t2ialign sample {spec} --lora {folder} -p "your prompt"', "use the LoRA")


def span(seconds: float) -> str:
    """A duration in words: "42 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
