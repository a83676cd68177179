"""Prompt files: training and held-out prompts, and the benchmark in GenEval's metadata layout."""

from __future__ import annotations

import json
import random
from pathlib import Path

from shapes_training.loop import derive_seed
from shapes_training.workdir import write_text
from t2ialign_shapes.captions import FAMILIES, Caption, sample

TRAIN_COUNTS = dict(zip(FAMILIES, (6, 12, 30, 24, 36, 36), strict=True))
HELDOUT_COUNTS = dict(zip(FAMILIES, (3, 6, 45, 30, 51, 54), strict=True))
"""Prompts per family. Together they use up the families with few captions, and share none."""

BENCHMARK_COUNTS = dict(zip(FAMILIES, (9, 18, 40, 40, 40, 40), strict=True))


def split_captions() -> tuple[list[Caption], list[Caption]]:
    """Disjoint training and held-out captions, 144 and 189."""
    train, heldout = [], []
    for family in FAMILIES:
        first, second = TRAIN_COUNTS[family], HELDOUT_COUNTS[family]
        captions = _distinct(family, "split", first + second)
        train += captions[:first]
        heldout += captions[first:]
    return train, heldout


def benchmark_captions() -> list[Caption]:
    """Different captions of every family; of the smallest families all there are."""
    return [c for family, n in BENCHMARK_COUNTS.items() for c in _distinct(family, "benchmark", n)]


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


def _distinct(family: str, purpose: str, count: int) -> list[Caption]:
    """Draw captions of a family as in training until ``count`` different ones have come up."""
    rng = random.Random(derive_seed("prompts", purpose, family))
    captions: dict[Caption, None] = {}
    while len(captions) < count:
        captions[sample(rng, family)] = None
    return list(captions)
