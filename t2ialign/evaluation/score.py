"""Score any folder of images with any rewards: in batches, with one JSON as the result."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ialign.errors import UsageError
from t2ialign.evaluation.folders import geneval_prompt
from t2ialign.parts.reward import Reward
from t2ialign.problem.mix import score_with
from t2ialign.storage.image_files import pixels_in, read_image
from t2ialign.storage.image_texts import NoPrompt, prompt_of

#: Pixels of the images that are held at once: 400 MB of float32.
MOST_AT_ONCE = 2**25


@dataclass(frozen=True)
class Scored:
    """One image with its scores; None stands for a score that is not a finite number."""

    image: Path
    prompt: str
    scores: dict[str, float | None]
    explanations: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """All scored images in their order, and image -> reason for those that were left out."""

    scored: list[Scored] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)

    def summary(self, names: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
        """Reward -> mean, std, se and count; see ``summarise``."""
        prompts = [item.prompt for item in self.scored]
        return {name: summarise([item.scores[name] for item in self.scored], prompts) for name in names}


def score_images(
    images: Sequence[Path],
    prompts: Sequence[str] | None,
    rewards: Mapping[str, Reward],
    batch: int = 32,
    tick: Callable[[int], None] = lambda n: None,
) -> Result:
    """Score image files, at most ``batch`` of them in memory.

    Args:
        images: files of any sizes; only images of one size are scored together.
        prompts: one per image; None takes each from its PNG text "prompt" or GenEval's metadata.
        rewards: name -> reward.
        tick: called with the number of images done since the last call.

    Returns:
        Scores, and the images that could not be read, have no prompt, or got a score that is not a finite number (the
        last have their other scores too).
    """
    result = Result()
    for reward in rewards.values():
        reward.may_miss = True  # such images are listed
    with ThreadPoolExecutor() as pool:
        for rows in _portions(images, batch):
            given = prompts[rows] if prompts is not None else [None] * len(images[rows])
            loaded = list(pool.map(_load, images[rows], given))
            _score_batch(images[rows], loaded, rewards, result)
            tick(len(loaded))
    return result


def _portions(images: Sequence[Path], batch: int) -> Iterator[slice]:
    """Consecutive slices of at most ``batch`` images and, but for single ones, ``MOST_AT_ONCE`` pixels."""
    start = pixels = 0
    for place, image in enumerate(images):
        own = pixels_in(image)
        if place > start and (place - start == batch or pixels + own > MOST_AT_ONCE):
            yield slice(start, place)
            start, pixels = place, 0
        pixels += own
    yield slice(start, len(images))


def joined(results: Sequence[Result]) -> Result:
    """Of several ranks' images, in their order."""
    skipped = {path: reason for one in results for path, reason in one.skipped.items()}
    return Result([item for one in results for item in one.scored], skipped)


def _load(path: Path, prompt: str | None) -> tuple[Tensor, str] | str:
    """Image and prompt, or why there is none."""
    try:
        image, texts = read_image(path)
    except Exception as error:  # Pillow's readers raise anything
        return f"not readable: {str(error) or type(error).__name__}"
    try:
        if prompt is None:
            prompt = geneval_prompt(path) or prompt_of(texts)
    except (NoPrompt, UsageError) as error:
        return str(error)
    return image, prompt


@torch.no_grad()
def _score_batch(
    paths: Sequence[Path], loaded: Sequence[tuple[Tensor, str] | str], rewards: Mapping[str, Reward], result: Result
) -> None:
    of_size: dict[torch.Size, list[int]] = defaultdict(list)
    for row, item in enumerate(loaded):
        if isinstance(item, str):
            result.skipped[paths[row]] = item
        else:
            of_size[item[0].shape].append(row)

    scored: dict[int, Scored] = {}
    for rows in of_size.values():
        images, prompts = zip(*(loaded[row] for row in rows), strict=True)
        stacked = torch.stack(images) if len(images) > 1 else images[0][None]  # a large one is not copied
        columns = {name: score_with(reward, stacked, list(prompts)).tolist() for name, reward in rewards.items()}
        said = {name: reward.explain(stacked, list(prompts)) for name, reward in rewards.items()}
        told = {name: words for name, words in said.items() if words is not None}
        for place, row in enumerate(rows):
            scores = {name: column[place] if math.isfinite(column[place]) else None for name, column in columns.items()}
            scored[row] = Scored(paths[row], prompts[place], scores, {n: words[place] for n, words in told.items()})
            if bad := [f"{name} is {column[place]}" for name, column in columns.items() if scores[name] is None]:
                result.skipped[paths[row]] = ", ".join(bad)
    result.scored += [scored[row] for row in sorted(scored)]


def summarise(values: Sequence[float | None], prompts: Sequence[str]) -> dict[str, float | int | None]:
    """Statistics of one reward over the images with a finite score.

    Returns:
        mean; std, of single images; se, the standard error of the mean over prompts, the images of one prompt being
        averaged first since they are not independent (over images where all have one prompt); count of images. None
        stands for what too few images do not give.
    """
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for value, prompt in zip(values, prompts, strict=True):
        if value is not None:
            by_prompt[prompt].append(value)
    finite = [value for group in by_prompt.values() for value in group]
    units = [statistics.fmean(group) for group in by_prompt.values()] if len(by_prompt) > 1 else finite
    return {
        "mean": statistics.fmean(finite) if finite else None,
        "std": statistics.stdev(finite) if len(finite) > 1 else None,
        "se": statistics.stdev(units) / math.sqrt(len(units)) if len(units) > 1 else None,
        "count": len(finite),
    }


def report(result: Result, folder: Path, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a scored folder; paths are relative to it."""

    def relative(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    return {
        "settings": dict(settings),
        "summary": result.summary(names),
        "images": [
            {"image": relative(item.image), "prompt": item.prompt, "scores": item.scores}
            | ({"explanations": item.explanations} if item.explanations else {})
            for item in result.scored
        ],
        "skipped": [{"image": relative(path), "reason": reason} for path, reason in result.skipped.items()],
    }
