"""``score``: any folder of images against any rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2ialign import places
from t2ialign.cli.parts import parse_part, prompt_file_of
from t2ialign.config import RewardMixConfig
from t2ialign.errors import UsageError
from t2ialign.evaluation import folders as image_folders
from t2ialign.foreign import shown
from t2ialign.spec.model import ChosenReward
from t2ialign.spec.parse import parse_rewards

if TYPE_CHECKING:
    from t2ialign.evaluation.score import Result

DEVICES = r"auto|cpu|mps|cuda(:\d+)?"


def score(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of images, or one image.")],
    reward: Annotated[
        list[str],
        typer.Option(
            "--reward", "-r", metavar="KIND[={...}]", help="A reward, with options as a TOML inline table. Repeatable."
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompt file; images take theirs by the number in their name, else by position."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt for all images.")] = None,
    pattern: Annotated[str, typer.Option(help="What file names must match.")] = "*",
    numbering: Annotated[
        str | None,
        typer.Option(metavar="line|prompt", help="What numbers in file names count; needed where a .txt skips lines."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Also look below the folder.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images in memory at once.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all scores here.")] = None,
) -> None:
    """Score a folder of images. Without --prompts, each image's prompt is its PNG text or GenEval's metadata.

    Exit code 1 when an image was left out; the others are scored all the same.
    """
    if re.fullmatch(DEVICES, device) is None:
        raise UsageError(f"--device {device}: must be auto, cpu, mps, cuda or cuda:N")
    chosen = parse_rewards([parse_reward(text) for text in reward], "--reward", Path.cwd())
    files = image_folders.find_images(images, pattern, recursive)
    if numbering not in (None, "line", "prompt"):
        raise UsageError(f"--numbering {numbering}: must be line or prompt")
    texts = _prompts(files, prompts, prompt, numbering)
    if json_file is not None and (reason := places.unwritable_file(json_file)):
        raise UsageError(f"--json {json_file}: {reason}")

    from t2ialign.cli.running import quiet_libraries
    from t2ialign.evaluation import score as scoring
    from t2ialign.remarks.collect import of_part
    from t2ialign.run.display import Display
    from t2ialign.storage import files as output
    from t2ialign.tensors.distributed import device as resolve_device
    from t2ialign.tensors.distributed import join

    quiet_libraries()
    world = join()
    display = Display(quiet=not world.is_main)
    for part in chosen:
        for remark in of_part("reward", part, texts or []):
            display.say(f"note: {remark}")
    with world.together():
        place = resolve_device(device)
        rewards = {part.name: part.build(place) for part in chosen}
        share = -(-len(files) // world.size)
        mine = slice(world.rank * share, (world.rank + 1) * share)
        with display.bar("scoring", len(files[mine])) as bar:
            own = scoring.score_images(files[mine], texts and texts[mine], rewards, batch, bar.advance)
        results = world.send(own)
    if not world.is_main:
        return
    result = scoring.joined(results)
    if json_file is not None:
        settings = {
            "images": str(images),
            "pattern": pattern,
            "recursive": recursive,
            "prompts": str(prompts) if prompts else prompt,
            "device": str(place),
            "rewards": {part.name: _described(part) for part in chosen},
            "t2ialign": version("t2ialign"),
        }
        folder = images if images.is_dir() else images.parent
        output.write_json(json_file, scoring.report(result, folder, list(rewards), settings))
    _show(result, list(rewards))
    if result.skipped:
        raise typer.Exit(1)


def parse_reward(text: str) -> dict[str, Any]:
    """``kind`` or ``kind={key = value, ...}`` as a ``[[reward]]`` table.

    Raises:
        UsageError: the options are no TOML inline table, or belong to a run's mix of rewards.
    """
    table = parse_part(text, "--reward")
    if mixing := table.keys() & (RewardMixConfig.model_fields.keys() - {"name"}):
        raise UsageError(f"--reward {text}: {', '.join(sorted(mixing))} only means something in a run's mix of rewards")
    return table


def _prompts(
    files: list[Path], prompt_file: Path | None, prompt: str | None, numbering: str | None
) -> Sequence[str] | None:
    if prompt_file is not None and prompt is not None:
        raise UsageError("--prompts and --prompt exclude each other")
    if prompt is not None:
        return [prompt] * len(files)
    return None if prompt_file is None else image_folders.match_prompts(files, prompt_file_of(prompt_file), numbering)


def _described(part: ChosenReward) -> dict[str, Any]:
    package = {"package": f"{part.declaration.distribution} {part.declaration.version}"}
    return {"kind": part.kind, **part.config.model_dump(mode="json"), **package}


def _show(result: Result, names: Sequence[str]) -> None:
    from rich.table import Table

    from t2ialign.run.display import Terminal

    table = Table("reward", "mean", "std", "se", "images")
    for name, row in result.summary(names).items():
        cells = ("-" if row[key] is None else f"{row[key]:.5g}" for key in ("mean", "std", "se"))
        table.add_row(name, *cells, str(row["count"]))
    Terminal().print(table)
    for path, reason in result.skipped.items():
        typer.echo(shown(f"left out: {path}: {reason}"), err=True)
