"""``sample``, ``eval`` and ``export``: what a spec, or a run, gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from t2ialign import places
from t2ialign.cli.parts import MOST_SEED, parse_samplers, parse_search, prompt_file_of
from t2ialign.cli.running import Overrides, RunFolder, SpecFile, quiet_libraries
from t2ialign.errors import UsageError
from t2ialign.foreign import shown
from t2ialign.spec import checkpoints
from t2ialign.spec.prompts import read

Step = Annotated[int | None, typer.Option(help="Checkpoint to use; default: the newest.")]


def sample(
    spec: SpecFile,
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; default: the spec's.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="A prompt file, 'pkg:...' or 'hub:...'.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Images per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Image i of every prompt gets seed + i.")] = 0,
    lora: Annotated[
        str | None,
        typer.Option(help="A LoRA: file, folder or hub id, in any layout that the docs list."),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="KIND[={...}]",
            help="Search every image by the spec's rewards, options as a TOML table; 'run.steps' are its iterations.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images.")] = Path("samples"),
) -> None:
    """Generate images from a spec's backend and sampler, with a LoRA or a search if given."""
    from t2ialign.spec import parse as specs

    parsed = specs.load(spec, overrides or [], {"optimizer": parse_search(search)} if search else None)
    if lora is not None and (wrong := checkpoints.check_lora(lora)):
        raise UsageError(f"--lora {lora} {wrong}")
    if prompt and prompt_file:
        raise UsageError("--prompt and --prompts exclude each other")
    wanted: Sequence[str] = prompt or (
        read(prompt_file_of(prompt_file)) if prompt_file else parsed.evaluation_prompts()
    )
    quiet_libraries()
    from t2ialign.ranks.world import join
    from t2ialign.run import sample as sampling

    world = join(parsed.run.timeout)
    with world.together():
        paths = sampling.sample(parsed, wanted[:limit], count, seed, lora, out, world, search is not None)
    if not world.is_main:
        return
    part = f"the first {sampling.SHOWN} of " if max(len(wanted[:limit]), count) > sampling.SHOWN else ""
    where = f"in {out}; grid.png shows {part}them, grid.txt has its prompts"
    typer.echo(shown(f"{len(paths)} images of {len(wanted[:limit])} prompts {where}"))


def eval_(
    run: RunFolder,
    step: Step = None,
    samplers: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler", metavar="KIND[={...}]", help="Also compare this sampler, options as a TOML table. Repeatable."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Evaluate a run's base against its tuned model on shared seeds, and rewrite its evaluation folder and report."""
    others = parse_samplers(samplers or [])
    quiet_libraries()
    from t2ialign.remarks.collect import EVALUATING, remarks
    from t2ialign.report import page as report
    from t2ialign.run import finish, runner
    from t2ialign.run.display import Display, Terminal

    world = runner.join_of(run)
    display = Display(quiet=not world.is_main)
    with world.together():
        run_dir, problem, optimizer = runner.restore(run, step, display)
        for remark in remarks(problem.spec, problem.spec.evaluation_prompts(), EVALUATING):
            display.say(f"note: {remark}")
        summary = finish.evaluate_run(run_dir, problem, optimizer, display, others)
        if world.is_main:
            report.write(run_dir)
    if not world.is_main:
        return
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    from t2ialign.cli.tables import comparison

    console = Terminal()
    console.print(comparison(summary, console.width))
    console.place(run / "report.html", "the run on one page, rewritten")


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it must not exist.")],
    step: Step = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Form of the LoRA: diffusers, kohya, peft or fused; default: the spec's."),
    ] = None,
) -> None:
    """Write what a run delivers at a checkpoint, and check it; a failed check leaves the files, and exit code 1."""
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out")
    if reason := places.unwritable(out):
        raise UsageError(f"--out {out}: {reason}")
    quiet_libraries()
    from t2ialign.run import finish, runner
    from t2ialign.run.display import Display

    world = runner.join_of(run)
    display = Display(quiet=not world.is_main)
    overrides = [f"export.formats={json.dumps(formats)}"] if formats else ()
    with world.together():
        run_dir, _, optimizer = runner.restore(run, step, display, overrides)
        finish.write_export(optimizer, out)
        display.say(f"wrote {out}")
        world.meet()  # what is checked is there
        finish.check_export(optimizer, out, run_dir)
        display.say("checked")
