"""What a run did to single prompts, with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2ialign.evaluation.statistics import student_quantile
from t2ialign.report.pictures import Picture
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir

PAIRS = 12  # prompts whose first image is shown as base and as tuned
EXTREMES = 4  # prompts shown on either side
IMAGES = 3  # images shown of each


@dataclass(frozen=True)
class Shown:
    """A picture and what the rewards say of it (None: no finite number)."""

    picture: Picture
    scores: Mapping[str, float | None]

    @property
    def words(self) -> str:
        """The scores in a line."""
        return ", ".join(
            f"{name} {'-' if score is None else format(score, '.4g')}" for name, score in self.scores.items()
        )


@dataclass(frozen=True)
class Pair:
    """One evaluated image as the base and as the tuned model draw it, of the same noise."""

    prompt: str
    base: Shown
    tuned: Shown


@dataclass(frozen=True)
class Change:
    """What the run did to one prompt: mean scores over its images, and some of them as base and as tuned."""

    prompt: str
    base: float
    tuned: float
    pictures: dict[str, list[Shown]]


def pairs(run: RunDir) -> list[Pair]:
    """The first image of at most ``PAIRS`` evaluated prompts, evenly spread; none where no image was saved."""
    folder, first = run.path / "evaluation", dict[str, tuple[int, Any]]()
    for row, line in enumerate(files.read_json_lines(folder / "scores.jsonl")):
        if all((folder / variant / f"{row:05d}.png").exists() for variant in ("base", "tuned")):
            first.setdefault(line["prompt"], (row, line))
    found = list(first.items())
    count = min(PAIRS, len(found))
    return [
        Pair(
            prompt,
            *(Shown(Picture.large(folder / v / f"{row:05d}.png"), line[v]) for v in ("base", "tuned")),
        )
        for prompt, (row, line) in (found[i * len(found) // count] for i in range(count))
    ]


def changes(run: RunDir, reward: str) -> dict[str, list[Change]]:
    """The prompts that gained and lost most under ``reward``, the largest first; images without a score are left out,
    and so are prompts that changed by no more than the noise of their images.

    Returns:
        "gain" and "loss" -> at most ``EXTREMES`` prompts each.
    """
    folder, noise = run.path / "evaluation", noise_of_a_prompt(run, reward) or 0.0
    lines = files.read_json_lines(folder / "scores.jsonl")
    means = []
    for prompt, rows in _pairs(run, reward).items():
        numbers, base, tuned = zip(*rows, strict=True)
        before, after = sum(base) / len(rows), sum(tuned) / len(rows)
        if abs(after - before) * len(rows) ** 0.5 > noise:
            means.append((prompt, before, after, numbers))
    means.sort(key=lambda one: one[1] - one[2])

    def shown(prompt: str, base: float, tuned: float, numbers: Sequence[int]) -> Change:
        saved = [number for number in numbers if (folder / "tuned" / f"{number:05d}.png").exists()][:IMAGES]
        pictures = {
            v: [Shown(Picture.large(folder / v / f"{n:05d}.png"), {reward: lines[n][v][reward]}) for n in saved]
            for v in ("base", "tuned")
        }
        return Change(prompt, base, tuned, pictures if saved else {})

    return {
        "gain": [shown(*one) for one in means[:EXTREMES] if one[2] > one[1]],
        "loss": [shown(*one) for one in means[: -EXTREMES - 1 : -1] if one[2] < one[1]],
    }


def noise_of_a_prompt(run: RunDir, reward: str) -> float | None:
    """Changes of a prompt's mean up to this, divided by the root of its number of images, are noise.

    Student's 0.975 quantile times the standard deviation of single images' changes about their prompt's mean, over all
    prompts together; None where every prompt has one image, which shows no noise.
    """
    squares, freedom = 0.0, 0
    for rows in _pairs(run, reward).values():
        moved = [tuned - base for _, base, tuned in rows]
        squares += sum((one - sum(moved) / len(moved)) ** 2 for one in moved)
        freedom += len(moved) - 1
    return student_quantile(freedom) * (squares / freedom) ** 0.5 if freedom else None


def _pairs(run: RunDir, reward: str) -> dict[str, list[tuple[int, float, float]]]:
    """Prompt -> (row, base, tuned) of its images that have both scores."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for row, line in enumerate(files.read_json_lines(run.path / "evaluation" / "scores.jsonl")):
        base, tuned = line["base"][reward], line["tuned"][reward]
        if base is not None and tuned is not None:
            found.setdefault(line["prompt"], []).append((row, base, tuned))
    return found
