"""Runs every command on the shapes world, cut to seconds, and writes what each prints into a page of the docs.

python tools/docs_outputs.py

Long outputs are cut to their beginning and end; the folder that the commands ran in is left out. A test holds the page
to the commands that there are.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
import tomllib
from pathlib import Path

import tomli_w
from typer.main import get_command
from typer.testing import CliRunner

from t2ialign.cli import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/outputs.md"
#: Lines that are shown of the beginning and of the end of an output.
FIRST, LAST = 11, 9
SMALL = {
    "run": {"name": "small", "steps": 2, "micro_batch": 8},
    "optimizer": {"population": 4},
    "prompts": {"per_step": 2},
    "evaluation": {"limit": 6, "images_per_prompt": 1},
}
#: What libraries say, and what this machine lacks.
NOISE = re.compile(r"Warning|torchvision|torchao")
UNDER_WAY = re.compile(r"(?!step )\D+(\d+)/(\d+)  eta ")
SWEEP = """spec = "small.toml"
[keys]
"optimizer.sigma" = [0.05, 0.1]
"""
#: What is typed, in this order, each in the folder that the ones before have left.
COMMANDS = [
    "init --backend sana-sprint --optimizer eggroll --reward clipscore",
    "validate small.toml",
    "estimate small.toml --memory 24GB",
    "run small.toml",
    "resume runs/small --set run.steps=3",
    "runs",
    "eval runs/small",
    "report runs/small",
    "run small.toml --set run.seed=1 --set run.name=other",
    "compare runs/small runs/other",
    "sample small.toml --lora runs/small/export -p 'a red circle' -n 2 --out images",
    "sample small.toml --search 'image-select' --set run.steps=4 -p 'a red circle' --out found",
    "score images --reward shapes-exact",
    "bench shapes small.toml runs/small --limit 4 --images 1",
    "sweep sigma.toml",
    "export runs/small --out lora --format peft",
    "push runs/small --repo me/small --dry-run --license mit",
    "plugins",
    "check shapes-exact --prompt 'a red circle' --prompt 'a blue square' --prompt 'a triangle'",
    "new-plugin reward my-score",
    "schema",
    "import-flags 'python main.py --backend sana_one_step --pop_size 16'",
]
#: Commands whose output is of one machine, or that go on until they are stopped.
NOT_RUN = {
    "doctor": "versions, devices, memory, disk, hub, caches and plugins of your machine, a line each",
    "serve": "the address that it serves at, then a line for every request, until Ctrl-C",
}


def page() -> str:
    """The page, of commands that run in a folder of their own."""
    os.environ |= {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}
    lines = [
        "# What commands print",
        "",
        "<!-- Made by tools/docs_outputs.py, which runs every command. -->",
        "",
        "`small.toml` is `specs/quickstart.toml` with two steps of a population of four, so that the page is made in a",
        "minute: its numbers mean nothing. Long outputs are cut in the middle.",
        "",
        "| command | what it does |",
        "|---|---|",
    ]
    seen = {command.split()[0] for command in COMMANDS}
    for name, summary in summaries().items():
        lines.append(f"| [`{name}`](#{name}) | {summary} |" if name in seen else f"| `{name}` | {NOT_RUN[name]} |")
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            prepare()
            for command in COMMANDS:
                print(command, flush=True)
                name = command.split()[0]
                if f"\n## {name}" not in lines:
                    lines.append(f"\n## {name}")
                lines += ["", "```console", f"$ t2ialign {command}", *shortened(output(command, folder)), "```"]
        finally:
            os.chdir(before)
    return "\n".join([*lines, ""])


def summaries() -> dict[str, str]:
    """Every command, and the first sentence of its help."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    return {name: (command.help or "").split("\n\n")[0].replace("\n", " ") for name, command in commands.items()}


def prepare() -> None:
    """The spec and the sweep that the commands are given."""
    tree = tomllib.loads((ROOT / "specs/quickstart.toml").read_text(encoding="utf-8"))
    for table, values in SMALL.items():
        tree[table] |= values
    Path("small.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")
    Path("sigma.toml").write_text(SWEEP, encoding="utf-8")


def output(command: str, folder: str) -> list[str]:
    """The lines that it prints, without progress and without the folder."""
    done = CliRunner().invoke(app, shlex.split(command))
    if done.exit_code:
        raise SystemExit(f"{command}: exit code {done.exit_code}\n{done.output}\n{done.exception!r}")
    text = done.output.replace(f"{os.path.realpath(folder)}/", "").replace(f"{folder}/", "")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return [line for line in lines if line and not NOISE.search(line) and not under_way(line)]


def under_way(line: str) -> bool:
    """A line of progress that a later one takes the place of."""
    found = UNDER_WAY.match(line)
    return found is not None and found[1] != found[2]


def shortened(lines: list[str]) -> list[str]:
    """The beginning and the end."""
    return lines if len(lines) <= FIRST + LAST + 1 else [*lines[:FIRST], "...", *lines[-LAST:]]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
