"""``init``: a spec that validates at once, with prompts to start from. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from t2ialign.cli.first import completion
from t2ialign.cli.first.fitting import fit, written
from t2ialign.cli.starting import json_schema, template
from t2ialign.errors import UsageError, nearest
from t2ialign.foreign import shown
from t2ialign.plugins import Registry, registry
from t2ialign.spec.parse import apply_override

SCHEMA = "t2ialign.schema.json"
QUESTIONS = {
    "backend": "Which model?",
    "optimizer": "How is it to be improved?",
    "reward": "What is better? The first reward; more can follow in the file.",
}


def init(
    backend: Annotated[
        str | None, typer.Option(help="Backend kind; asked if left out.", autocompletion=completion.of("backend"))
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Optimizer kind; asked if left out.", autocompletion=completion.of("optimizer"))
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward kind; asked if left out.", autocompletion=completion.of("reward"))
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler kind; default: one that fits.", autocompletion=completion.of("sampler"))
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="A prompt file of yours; default: some to start from are written.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of the spec. Repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The spec file to write; it must not exist.")] = Path(
        "spec.toml"
    ),
) -> None:
    """Write a commented spec that validates at once, and prompts to start from; asks for what is not given."""
    parts = registry()
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: no such folder")
    chosen = _chosen(parts, {"backend": backend, "optimizer": optimizer, "reward": reward})
    if sampler not in (None, "none"):
        parts.find("sampler", sampler or "")
    tree: dict[str, Any] = {role: {"kind": kind} for role, kind in chosen.items() if role != "reward"}
    tree |= {"sampler": {"kind": sampler}} if sampler not in (None, "none") else {}
    tree["reward"] = [{"kind": chosen["reward"]}]
    for text in overrides or []:
        apply_override(tree, text)
    found = fit(parts, tree, out.absolute().parent, str(out), prompts)
    beside = out.absolute().parent / found.file
    if found.prompts and beside.exists():
        raise UsageError(f"{beside} exists already; use it with --prompts {found.file}, or choose another folder")
    text = template(
        parts.find("backend", chosen["backend"]),
        parts.find("sampler", found.tree["sampler"]["kind"]) if "sampler" in found.tree else None,
        parts.find("optimizer", chosen["optimizer"]),
        parts.find("reward", chosen["reward"]),
        {**found.tree, "prompts": {**found.tree.get("prompts", {}), "file": found.file}},
        f"./{SCHEMA}",
    )
    if found.prompts:
        written(beside, found.prompts)
    (out.absolute().parent / SCHEMA).write_text(json.dumps(json_schema(parts), indent=2) + "\n", encoding="utf-8")
    out.write_text(text, encoding="utf-8")
    extra = f", {found.file} with {len(found.prompts)} prompts to start from" if found.prompts else ""
    typer.echo(shown(f"wrote {out}{extra}, and {SCHEMA} for editors; next: t2ialign validate {out}"))


def _chosen(parts: Registry, given: dict[str, str | None]) -> dict[str, str]:
    """A kind of every role; unknown ones are told together, and what was not given is asked.

    Raises:
        UsageError: an unknown kind, or nobody answers; lists the kinds.
    """
    wrong = []
    for role, kind in given.items():
        if kind is not None:
            try:
                parts.find(role, kind)
            except UsageError as error:
                near = nearest(kind, parts.parts[role])
                hint = f"did you mean '{near}'? " if near else ""
                wrong.append(f"--{role} {kind}: {hint}{error}")
    if wrong:
        raise UsageError("\n".join(wrong))
    chosen: dict[str, str] = {role: kind for role, kind in given.items() if kind is not None}
    for role, question in QUESTIONS.items():
        if role not in chosen:
            chosen[role] = _asked(role, question, _listed(parts, role), list(parts.parts[role]))
    return {role: chosen[role] for role in QUESTIONS}


def _listed(parts: Registry, role: str) -> list[str]:
    return [f"  {kind:24}{declared.summary}" for kind, declared in sorted(parts.parts[role].items())]


def _asked(role: str, question: str, lines: Sequence[str], kinds: Sequence[str]) -> str:
    typer.echo(shown("\n".join([question, *lines])), err=True)
    try:
        while (answer := typer.prompt(role, err=True).strip()) not in kinds:
            typer.echo(shown(f"no {role} '{answer}'"), err=True)
    except (typer.Abort, EOFError):
        raise UsageError(f"init needs --{role} where nobody answers; kinds: {', '.join(sorted(kinds))}") from None
    return str(answer)
