"""``bench``: a prompt suite, drawn by several variants and scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2ialign import places, plugins
from t2ialign.cli.parts import MOST_SEED, parse_samplers
from t2ialign.cli.running import Overrides, quiet_libraries
from t2ialign.cli.score import parse_reward
from t2ialign.errors import UsageError
from t2ialign.foreign import shown
from t2ialign.spec.model import ChosenReward, Spec
from t2ialign.spec.parse import parse_rewards

if TYPE_CHECKING:
    from t2ialign.bench.variants import Variant


def bench(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE", help="parti, geneval, t2i-compbench, drawbench, hpsv2, shapes, or a prompt file."
        ),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SPEC|RUN|LORA...", help="A spec or a run first, which gives the base; then any more."),
    ],
    prompts: Annotated[str | None, typer.Option(help="The suite's own prompt file, or folder of them.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the prompts, where it is not a usual name.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: bench/SUITE.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts of a list, evenly spread.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Images per prompt; default: the suite's protocol.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MOST_SEED, help="First seed; default: the suite's protocol.")
    ] = None,
    samplers: Annotated[
        list[str] | None,
        typer.Option("--sampler", metavar="KIND[={...}]", help="Also the base with this sampler. Repeatable."),
    ] = None,
    rewards: Annotated[
        list[str] | None,
        typer.Option("--reward", "-r", metavar="KIND[={...}]", help="Also score with this reward. Repeatable."),
    ] = None,
    more: Annotated[bool, typer.Option(help="Also the base with about twice the network evaluations.")] = True,
    overrides: Overrides = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images drawn at once; default: run.micro_batch.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Draw a prompt suite with base, runs, LoRAs and samplers on shared seeds, and score it: quality beside its cost.

    Images lie as the suite's own scorers read them. A bench that was stopped goes on with the same command.
    """
    from t2ialign.bench import variants as planning
    from t2ialign.bench.suites import open_suite

    suited = open_suite(suite, prompts, column, images)
    variants = planning.plan(sources, overrides or [], parse_samplers(samplers or []), more)
    chosen = list(scoring(variants[0].spec, suited.suite.rewards, rewards or []))
    for reward in chosen:
        for text in (text for found in suited.lists.values() for text in found):
            lacking = sorted(reward.config.reads() - text.data.keys())
            if wrong := f"reads '{lacking[0]}', which it lacks" if lacking else reward.config.problem_with(text):
                raise UsageError(f"reward '{reward.name}' cannot score '{text}': {wrong}")
    if more and not any(variant.name.startswith("base-") for variant in variants):
        typer.echo("note: no sampler gives this base more network evaluations, so none is a variant", err=True)
    if dropped := [reward.name for reward in variants[0].spec.rewards if reward.name not in {r.name for r in chosen}]:
        why = "judge an image beside others of its prompt, or beside a reference, which a bench's files have not"
        typer.echo(f"note: without {', '.join(dropped)}: they {why}", err=True)
    place = out or Path("bench") / (suite if suited.suite.kind != "own" else Path(suite).stem)
    if reason := places.unwritable(place):
        raise UsageError(f"--out {place}: {reason}")
    for remark in notes(variants, chosen, suited.lists):
        typer.echo(shown(f"note: {remark}"), err=True)
    quiet_libraries()
    from t2ialign.bench.bench import Bench

    first = suited.suite.first_seed if seed is None else seed
    summary = Bench(place, suited, suited.items(first, limit), variants, chosen, first, batch).run()
    if not summary:
        return
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    from rich.table import Table

    from t2ialign.bench import results
    from t2ialign.run.display import Terminal

    header, *lines = results.main_table(summary)
    table = Table(caption=results.caption(summary))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for line in lines:
        table.add_row(*line)
    console = Terminal()
    console.print(table)
    for name, meaning in (
        ("report.html", "quality against evaluations, on one page"),
        ("table.md", "the same tables, by category too; table.csv and summary.json have every number"),
        ("images", "a folder for each variant, as the suite's own scorer reads it"),
    ):
        console.place(place / name, meaning)


def notes(
    variants: Sequence[Variant], rewards: Sequence[ChosenReward], lists: Mapping[str, Sequence[str]]
) -> list[str]:
    """The remarks of the other commands, each once: on what draws, and on the rewards that score."""
    from t2ialign.remarks.collect import DRAWING, of_part, remarks

    texts = [text for found in lists.values() for text in found]
    drawn = [
        replace(variant.spec, sampler=variant.sampler) if variant.sampler else variant.spec for variant in variants
    ]
    found = [line for spec in drawn for line in remarks(spec, texts, DRAWING)]
    found += [line for reward in rewards for line in of_part("reward", reward, texts, variants[0].spec)]
    return list(dict.fromkeys(found))


def scoring(spec: Spec, of_suite: tuple[str, ...], extra: list[str]) -> list[ChosenReward]:
    """The rewards of a spec that judge an image by itself, those of a suite that are installed, and further ones."""
    alone = [r for r in spec.rewards if not r.provides() & {"per-prompt", "reference"}]
    known = plugins.registry().parts["reward"]
    kinds = {reward.kind for reward in alone}
    words = [kind for kind in of_suite if kind in known and kind not in kinds]
    others = (
        parse_rewards([{"kind": k} for k in words] + [parse_reward(t) for t in extra], "--reward", Path.cwd())
        if (words or extra)
        else ()
    )
    names = [reward.name for reward in (*alone, *others)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"--reward: two rewards are called '{twice}'; give one a name: KIND={{name = ...}}")
    return [*alone, *others]
