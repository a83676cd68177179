"""Prompt files: training and held-out prompts, and the benchmark in GenEval's metadata layout."""

from __future__ import annotations

import json
import random
from pathlib import Path

from shapes_training.loop import derive_seed
from shapes_training.workdir import write_text
from t2ialign_shapes.captions import FAMILIES, Caption, enumerate_captions

TRAIN_COUNTS = dict(zip(FAMILIES, (6, 12, 30, 24, 36, 36), strict=True))
HELDOUT_COUNTS = dict(zip(FAMILIES, (3, 6, 45, 30, 51, 54), strict=True))
"""Prompts per family. Together they use up the families with few captions, and share none."""

BENCHMARK_PER_FAMILY = 40


def split_captions() -> tuple[list[Caption], list[Caption]]:
    """Disjoint training and held-out captions, 144 and 189."""
    train, heldout = [], []
    for family in FAMILIES:
        captions = _shuffled(family, "split")
        first, second = TRAIN_COUNTS[family], HELDOUT_COUNTS[family]
        train += captions[:first]
        heldout += captions[first : first + second]
    return train, heldout


def benchmark_captions() -> list[Caption]:
    """Up to `BENCHMARK_PER_FAMILY` different captions of every family."""
    return [c for family in FAMILIES for c in _shuffled(family, "benchmark")[:BENCHMARK_PER_FAMILY]]


def metadata(caption: Caption) -> dict:
    """One line of GenEval's metadata, with the background as an additional key."""
    include = []
    for thing in caption.things:
        wanted: dict = {"class": thing.shape, "count": thing.count}
        if thing.color:
            wanted["color"] = thing.color
        include.append(wanted)
    if caption.relation:
        # GenEval lists the reference object first.
        first, second = include
        include = [second, first | {"position": [caption.relation, 0]}]
    entry: dict = {"tag": caption.family, "include": include}
    if caption.things[0].count > 1:
        first = caption.things[0]
        entry["exclude"] = [{"class": first.shape, "count": first.count + 1}]
    if caption.background:
        entry["background"] = caption.background
    return entry | {"prompt": str(caption)}


def write_prompts(folder: Path) -> None:
    """Write ``train.txt``, ``heldout.txt`` and ``benchmark.jsonl``."""
    train, heldout = split_captions()
    for name, captions in {"train": train, "heldout": heldout}.items():
        write_text(folder / f"{name}.txt", "".join(f"{caption}\n" for caption in captions))
    lines = (json.dumps(metadata(caption)) + "\n" for caption in benchmark_captions())
    write_text(folder / "benchmark.jsonl", "".join(lines))


def _shuffled(family: str, purpose: str) -> list[Caption]:
    """The captions of a family in a fixed random order, a quarter of them naming a background.

    Families with few captions keep all of them.
    """
    rng = random.Random(derive_seed("prompts", purpose, family))
    captions = list(enumerate_captions(family))
    plain = [caption for caption in captions if caption.background is None]
    named = [caption for caption in captions if caption.background is not None]
    rng.shuffle(plain)
    rng.shuffle(named)
    if len(captions) < 60:
        plain += named
        rng.shuffle(plain)
        return plain
    mixed = []
    while plain:
        mixed += plain[:3] + named[:1]
        plain, named = plain[3:], named[1:]
    return mixed
