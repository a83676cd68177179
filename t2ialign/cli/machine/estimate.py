"""``estimate``: memory, work and time of a spec, without its weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2ialign.cli.running import Overrides, SpecFile, quiet_libraries
from t2ialign.errors import UsageError
from t2ialign.spec import parse as specs

if TYPE_CHECKING:
    from t2ialign.estimate.estimate import Estimate

Rate = Annotated[
    float | None,
    typer.Option(
        "--flops", min=1.0, help="Operations a second that the device reaches, e.g. 1e14; default: tried here."
    ),
]


def estimate(
    spec: SpecFile,
    overrides: Overrides = None,
    memory: Annotated[
        str | None, typer.Option(help="A card's memory, e.g. 24GB: does it fit, and what to change.")
    ] = None,
    flops: Rate = None,
    workers: Annotated[bool, typer.Option("--workers", help="Simulate 1 to 10,000 workers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate memory, work and time of a spec; reads configurations only."""
    parsed = specs.load(spec, overrides or [])
    quiet_libraries()
    from t2ialign.estimate import advice
    from t2ialign.estimate.estimate import estimate as of
    from t2ialign.estimate.estimate import rate
    from t2ialign.tensors import distributed

    wanted = advice.memory_size(memory) if memory else None
    on_cpu = False if memory else None
    found = of(parsed, on_cpu)
    device = distributed.device(parsed.run.device)
    speed = flops or rate(parsed.backend_config.dtype, device)
    changed = None
    if wanted is not None and not (fit := advice.fits(found, wanted)):
        changed = advice.to_fit(spec, overrides or [], wanted, on_cpu)
    if as_json:
        answer: dict[str, Any] = {**found.as_json(), "flops": speed, "seconds": found.seconds(speed)}
        if wanted is not None:
            answer |= {"fits": fit, "changes": changed[0] if changed else []}
        typer.echo(json.dumps(answer, indent=2))
        return
    for line in _lines(found):
        typer.echo(line)
    where = (
        "given"
        if flops
        else f"products of {parsed.backend_config.dtype} matrices on this {device.type}; networks reach less"
    )
    typer.echo(f"time at {speed:.2g} operations/s ({where}): {_span(found.seconds(speed))}")
    if workers:
        from t2ialign.estimate.scaling import table

        for line in table(parsed, found, speed):
            typer.echo(line)
    if wanted is None:
        return
    if fit:
        typer.echo(f"fits {memory}")
    elif changed:
        typer.echo(f"does not fit {memory}; it does, with {_size(changed[1].peak)}, by")
        typer.echo("  " + " ".join(f"--set '{change}'" for change in changed[0]))
    else:
        raise UsageError(f"does not fit {memory}, and no change of micro-batch, offload or number format makes it fit")


def _lines(found: Estimate) -> list[str]:
    lines = [f"peak memory {_size(found.peak)}: while images are drawn, in micro-batches of {found.micro_batch}"]
    lines += [f"  {name:42}{_size(size):>12}" for name, size in found.memory.items()]
    lines += [f"  encoding the prompts, before that{'':11}{_size(found.text):>12}"] if found.text else []
    lines += ["passes, one at a time"] if len(found.passes) > 1 else []
    lines += [f"  {name:42}{_size(size):>12}" for name, size in found.passes.items() if len(found.passes) > 1]
    lines += [f"not counted: {what}" for what in found.unknown]
    lines.append(
        f"a step: {found.images:,} images, {found.network_calls:,} network calls of one image, {found.decodes:,}"
        f" decodes, {found.operations['step']:.3g} operations; {found.steps:,} steps, {found.evaluated:,} images"
        " evaluated"
    )
    return lines


def _size(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
