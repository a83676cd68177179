"""``validate`` and ``plugins``: what a spec would do, and what is installed. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from t2ialign import plugins as registry_module
from t2ialign.cli.running import Overrides, SpecFile
from t2ialign.errors import UsageError
from t2ialign.evaluation.schedule import schedule
from t2ialign.foreign import shown
from t2ialign.plugins import Registry
from t2ialign.remarks.collect import all_prompts, remarks
from t2ialign.spec import parse as specs
from t2ialign.spec.machine import check_machine
from t2ialign.spec.model import Spec

#: Seconds of import from which a plugin is named.
SLOW = 1.0


def validate(spec: SpecFile, overrides: Overrides = None) -> None:
    """Check a spec without loading weights, and print what it would do."""
    parsed = specs.load(spec, overrides or [])
    check_machine(parsed)
    plan = parsed.optimizer_config.plan(parsed)
    images = plan.steps * plan.images_per_step
    evaluations = plan.evaluations or parsed.sampler_config.evaluations()
    sampler = f", {parsed.sampler.kind} sampler" if parsed.sampler else ""
    lines = {
        "backend": f"{parsed.backend.kind} ({parsed.backend_config.checkpoint}){sampler}",
        "optimizer": parsed.optimizer.kind,
        "rewards": ", ".join(
            f"{r.name} x {r.mix.weight:g}" if r.mix.weight else f"{r.name} (held out)" for r in parsed.rewards
        ),
        "steps": f"{plan.steps:,}",
        "images per step": f"{plan.images_per_step:,}",
        "images in all": f"{images:,}",
        "network evaluations": f"{images * evaluations:,}",
        **plan.notes,
    }
    along = schedule(parsed, plan)
    lines["evaluations on the way"] = along.words(plan) if along else "none"
    if parsed.uses_lora:
        lines["parameters in the LoRA"] = _lora_parameters(parsed)
    typer.echo(shown(f"{spec} is valid"))
    for name, value in lines.items():
        typer.echo(shown(f"  {name:24}{value}"))
    for remark in remarks(parsed, all_prompts(parsed)):
        typer.echo(shown(f"note: {remark}"))


def _lora_parameters(spec: Spec) -> str:
    """Counted from the checkpoint's safetensors headers; unknown while a hub checkpoint is not on disk."""
    from t2ialign.spec import checkpoints

    config = spec.backend_config
    folder = checkpoints.local_path(config.checkpoint, spec.folder)
    if folder is None:
        return "known once the checkpoint is on disk"
    shapes = {
        f"{part}.{name}": shape
        for part, start in config.lora_folders().items()
        for name, shape in checkpoints.tensor_shapes(folder / part).items()
        if name.startswith(start)
    }
    modules = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    if config.lora.start is not None:
        return "those of backend.lora.start"

    def layers_of(targets: Sequence[str]) -> dict[str, list[int]]:
        return {
            name: shape
            for name, shape in modules.items()
            if len(shape) in (2, 4) and any(name == target or name.endswith(f".{target}") for target in targets)
        }

    usual = layers_of(config.lora_targets())
    adapted = layers_of(config.lora.targets) if config.lora.targets else usual
    lost = [target for target in config.lora.targets or () if usual and not layers_of([target])]
    if lost:  # usual ones are there, so the headers' names are those of layers
        raise UsageError(
            f"backend.lora.targets: no layer of the network is called {', '.join(map(repr, lost))}; the usual ones:"
            f" {', '.join(config.lora_targets())}"
        )
    if not adapted:
        return "known once the checkpoint is on disk"
    count = 0
    for outputs, *inputs in adapted.values():
        fan_in = 1
        for size in inputs:
            fan_in *= size
        count += config.lora.rank * (outputs + fan_in)
    return f"{count:,} in {len(adapted)} modules"


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the installed plugins and what they provide; exit code 1 if one is broken or two claim one kind."""
    found = registry_module.registry()
    troubles = list(_troubles(found))
    if as_json:
        listing = {
            "plugins": [vars(status) for status in found.plugins],
            "parts": [
                {
                    "role": role,
                    "kind": kind,
                    "summary": declared.summary,
                    "distribution": declared.distribution,
                    "version": declared.version,
                    "provides": sorted(declared.provides),
                    "requires": {other: sorted(words) for other, words in declared.requires.items()},
                    "options": declared.config.model_json_schema().get("properties", {}),
                }
                for role, kinds in found.parts.items()
                for kind, declared in sorted(kinds.items())
            ],
            "clashes": [
                {"role": role, "kind": kind, "distributions": names} for (role, kind), names in found.clashes.items()
            ],
        }
        typer.echo(json.dumps(listing, indent=2))
        raise typer.Exit(1 if troubles else 0)
    from rich import box
    from rich.table import Table

    from t2ialign.run.display import Terminal

    console = Terminal()
    for role, kinds in found.parts.items():
        table = Table(title=f"{role}s", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("kind", "what it is", "from"):
            table.add_column(column, no_wrap=column != "what it is")
        for kind, declared in sorted(kinds.items()):
            clash = (role, kind) in found.clashes
            table.add_row(kind, declared.summary, "two packages" if clash else declared.distribution)
        console.print(table)
    for line in troubles:
        console.print(line, soft_wrap=True)
    for status in found.plugins:
        if status.imports_torch or status.seconds > SLOW:
            console.print(
                f"slow: {status.name} takes {status.seconds:.1f} s to import{' torch' * status.imports_torch};"
                " a lazy target 'package.module:Class' leaves heavy imports to the runs that need them",
                soft_wrap=True,
            )
    raise typer.Exit(1 if troubles else 0)


def _troubles(found: Registry) -> Iterator[str]:
    """One line for everything that is installed and cannot be used."""
    for (role, kind), names in found.clashes.items():
        yield f"clash: {role} '{kind}' is registered by {' and '.join(names)}; uninstall one"
    for status in found.plugins:
        if status.error:
            yield f"broken: {status.name} ({status.distribution} {status.version}): {status.error}"
    for kinds in found.parts.values():
        for declared in kinds.values():
            if missing := declared.missing():
                yield f"broken: {declared.label}: {missing}"
