"""Writes the tables of the docs that are made from the code; tests compare them with what is written.

python tools/docs_tables.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from t2ialign.config import Config
from t2ialign.idle import Idle
from t2ialign.plugins import registry
from t2ialign.remarks.tables import IDLE
from t2ialign_solvers.scheduler_classes import BOTH, DRAWN, RECTIFIED_FLOW, REFUSED

ROOT = Path(__file__).parents[1]
MADE = "<!-- Made by tools/docs_tables.py; a test compares it with the code. -->"


def idle_page() -> str:
    """Every option that does nothing at some settings of the others."""
    lines = [
        "# Settings without effect",
        "",
        MADE,
        "",
        "Each is one line that starts with `note:`, told before the work, see [messages](../messages.md). An option"
        " that has its default is never told.",
        "",
    ]
    for options, found in declarations():
        lines += [f"## {title(options)}", "", "| option | without effect, or less than it says | what to do |"]
        lines += ["|---|---|---|", *(idle_row(idle) for idle in found), ""]
    return "\n".join(lines)


def declarations() -> Iterator[tuple[type[Config], tuple[Idle, ...]]]:
    """Classes of options that declare some, the core's first, each once."""
    yield from IDLE.items()
    parts = [declared.config for kinds in registry().parts.values() for _, declared in sorted(kinds.items())]
    further = [table for config in parts for table in nested(config)]
    for options in dict.fromkeys(base for config in [*parts, *further] for base in reversed(config.__mro__)):
        if found := vars(options).get("idle", ()):
            yield options, found


def nested(config: type[Config]) -> Iterator[type[Config]]:
    """The tables inside a table."""
    for field in config.model_fields.values():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        yield from (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config))


def title(options: type[Config]) -> str:
    """What a class of options is for, in the first line of its description."""
    return (options.__doc__ or "").partition("\n")[0].rstrip(".").replace("``", "`")


def idle_row(idle: Idle) -> str:
    return f"| {', '.join(f'`{name}`' for name in idle.options.split())} | {idle.when} | {idle.remedy} |"


def scheduler_page() -> str:
    """Every scheduler class of diffusers with the families of models."""
    lines = [
        "# Schedulers of diffusers",
        "",
        MADE,
        "",
        "What the sampler `diffusers` does with every class of the pinned version. Families: models that predict noise"
        " (SD, SDXL, PixArt), rectified flows (SD3, FLUX, Z-Image and their like), Sana, and all others, which sample"
        " in their own way (Sana Sprint, VAR, Infinity). What is refused is refused by name in `validate`.",
        "",
        "| class | predicts noise | rectified flow | Sana | others |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(DRAWN | REFUSED.keys()):
        if name in REFUSED:
            cells = [f"refused: {REFUSED[name]}", *["refused"] * 3]
        elif name in BOTH:
            cells = ["drawn", "drawn with `use_flow_sigmas` in `options`, else refused", "drawn", "refused"]
        else:
            flow = name in RECTIFIED_FLOW
            cells = [*(("refused", "drawn", "drawn") if flow else ("drawn", "refused", "refused")), "refused"]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


#: File below docs/ -> what makes its text.
PAGES = {"reference/idle.md": idle_page, "reference/schedulers.md": scheduler_page}


def main() -> None:
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
