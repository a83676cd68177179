"""``run`` and ``resume``."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from t2ialign.spec import parse as specs
from t2ialign.storage.run_directory import RunDir

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a TOML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the spec; the value is TOML. Repeatable."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def run(spec: SpecFile, overrides: Overrides = None) -> None:
    """Run a spec: optimise, evaluate base against tuned, export."""
    parsed = specs.load(spec, overrides or [])
    quiet_libraries()
    from t2ialign.run import runner

    _show(runner.start(parsed).path)


def resume(run: RunFolder, overrides: Overrides = None) -> None:
    """Continue a run that was stopped or killed, from its newest checkpoint; --set run.steps=N goes beyond its end."""
    RunDir.open(run)  # a wrong folder is told before anything heavy loads
    quiet_libraries()
    from t2ialign.run import runner

    _show(runner.resume(run, overrides=overrides or []).path)


def quiet_libraries() -> None:
    """Keep notices that no user can act on out of the progress display; call it before torch is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a fork warning for every data worker
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for chatter in ("torchao", "torch.utils._pytree"):
        logging.getLogger(chatter).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers|huggingface_hub)(\..*)?")


def _show(path: Path) -> None:
    """The last screen: the table, and where everything is."""
    import json

    from rich.console import Console

    from t2ialign.cli.tables import comparison
    from t2ialign.tensors.distributed import join

    if not join().is_main:
        return
    console = Console()
    summary = json.loads((path / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    console.print(comparison(summary, console.width))
    for name, meaning in (
        ("report.html", "the run on one page"),
        ("evaluation/pairs.png", "base above tuned, same prompts and noise"),
        ("samples", "grids at fixed prompts and noise"),
        ("export", "what the run delivers"),
    ):
        if (path / name).exists():
            console.print(f"{path / name}  [dim]{meaning}[/dim]", highlight=False, soft_wrap=True)
