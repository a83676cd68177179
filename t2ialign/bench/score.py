"""Score a bench's images in place, as the files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from t2ialign.bench.folder import BenchFolder, Lines
from t2ialign.bench.suites import Item
from t2ialign.evaluation.score import score_images
from t2ialign.run.display import Display
from t2ialign.spec.model import ChosenReward
from t2ialign.spec.prompts import Prompt, data_of
from t2ialign.tensors import distributed
from t2ialign.tensors.batching import split
from t2ialign.tensors.distributed import World

BATCH = 32


def score(
    folder: BenchFolder,
    items: Sequence[Item],
    variants: Sequence[str],
    rewards: Sequence[ChosenReward],
    device: str,
    display: Display,
    world: World | None = None,
) -> None:
    """Score what has no score yet. Every process scores every ``world.size``-th image; a score that is no finite number
    is kept as none, and told."""
    world = world or World()
    known, drawn = folder.scores(), folder.drawn()
    lines = Lines(folder.path / f"scores.{world.rank}.jsonl")
    world.meet()
    names = [reward.name for reward in rewards]
    pairs = [(variant, item) for variant in variants for item in items if (variant, item.file) in drawn]
    missing: dict[tuple[str, ...], list[tuple[str, Item]]] = {}
    for variant, item in pairs:
        wanted = tuple(name for name in names if name not in known.get((variant, item.file), {}))
        if wanted:
            missing.setdefault(wanted, []).append((variant, item))
    mine = {wanted: found[world.rank :: world.size] for wanted, found in missing.items()}
    total = sum(map(len, mine.values()))
    if total:
        display.say("loading rewards: " + ", ".join(names))
        place = distributed.device(device)
        built = {reward.name: reward.build(place) for reward in rewards if any(reward.name in w for w in mine)}
        with display.bar("scoring", len(pairs), len(pairs) - total) as bar:
            for wanted, found in mine.items():
                for rows in split(len(found), BATCH):
                    _score(folder, found[rows], {name: built[name] for name in wanted}, drawn, lines, display)
                    bar.advance(len(found[rows]))
    world.meet()


def _score(
    folder: BenchFolder,
    part: Sequence[tuple[str, Item]],
    rewards: Mapping[str, object],
    drawn: Mapping[tuple[str, str], Mapping[str, str]],
    lines: Lines,
    display: Display,
) -> None:
    paths = [folder.images / variant / item.file for variant, item in part]
    # A class-conditional backend spells a prompt out: rewards see its text, as they do in runs.
    said = [drawn[variant, item.file].get("prompt", str(item.prompt)) for variant, item in part]
    prompts = [Prompt(text, data_of(item.prompt)) for text, (_, item) in zip(said, part, strict=True)]
    result = score_images(paths, prompts, rewards, BATCH)  # type: ignore[arg-type]
    found = {one.image: one.scores for one in result.scored}
    for path, (variant, item) in zip(paths, part, strict=True):
        if why := result.skipped.get(path):
            display.say(f"no score: {path}: {why}")
        scores = found.get(path, dict.fromkeys(rewards))
        lines.add({"variant": variant, "file": item.file, "scores": scores})
