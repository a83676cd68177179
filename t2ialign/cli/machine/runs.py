"""``runs``: the run directories of a folder, and which of them can go."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from t2ialign.errors import UsageError
from t2ialign.storage.ownership import is_owned
from t2ialign.storage.run_directory import RunDir


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where runs are made.")] = Path("runs"),
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove runs that never took a step, and checkpoints of finished runs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs in a folder: state, step, best reward, size."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    found = [described(RunDir(file.parent)) for file in sorted(folder.glob("*/spec.toml"))]
    if as_json and not prune:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        typer.echo(f"no runs in {folder}")
        return
    _print(found)
    if prune:
        _prune([path for run in found for path in removable(run)], yes)


def described(run: RunDir) -> dict[str, Any]:
    """One run in numbers and words."""
    lines, problem = run.metrics(), ""
    step = lines[-1]["step"] if lines else 0
    try:
        tree = run.tree()
        steps = tree["run"].get("steps")
        rewards = [reward for reward in tree["reward"] if reward.get("weight", 1.0)]
        first = rewards[0].get("name") or rewards[0]["kind"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        problem, steps, first = f"spec.toml: {error}", None, ""
    if problem:
        state = "broken"
    elif is_owned(run.path):
        state = "running"
    elif run.is_finished():
        state = "finished"
    else:
        state = "stopped" if run.newest_step() else "never began" if not step else "no checkpoint"
    history = run.history()
    evaluated = [line[f"evaluation/{first}"] for line in history if line.get(f"evaluation/{first}") is not None]
    trained = [line[f"reward/{first}"] for line in history if line.get(f"reward/{first}") is not None]
    return {
        "path": str(run.path),
        "state": state,
        "step": step,
        "steps": steps,
        "reward": first,
        "best": max(evaluated or trained, default=None),
        "bytes": size(run.path),
        "changed": run.path.stat().st_mtime,
        "problem": problem,
    }


def removable(run: dict[str, Any]) -> list[Path]:
    """What nobody would miss: a run that never took a step; the checkpoints of a finished one but the newest."""
    path = Path(run["path"])
    if run["state"] == "never began":
        return [path]
    if run["state"] == "finished":
        return sorted((path / "checkpoints").glob("step-*"))[:-1]
    return []


def size(path: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def human(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _print(found: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("run", "state", "step", "best", "reward", "size", "changed"):
        table.add_column(name, justify="right" if name in ("step", "best", "size") else "left", overflow="fold")
    for run in found:
        steps = f"{run['step']}/{run['steps']}" if run["steps"] else str(run["step"])
        best = "-" if run["best"] is None else f"{run['best']:.4g}"
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["changed"]))
        cells = [Path(run["path"]).name, run["state"], steps, best, run["reward"], human(run["bytes"]), changed]
        table.add_row(*map(escape, cells))
    console = Console()
    console.print(table)
    console.print(f"{len(found)} runs, {human(sum(run['bytes'] for run in found))}", highlight=False)


def _prune(paths: list[Path], yes: bool) -> None:
    if not paths:
        typer.echo("nothing to remove")
        return
    typer.echo("to remove:")
    for path in paths:
        typer.echo(f"  {path}  {human(size(path))}")
    if not yes and not typer.confirm("remove them?"):
        raise typer.Exit(1)
    for path in paths:
        shutil.rmtree(path)
    typer.echo(f"removed {len(paths)}")
