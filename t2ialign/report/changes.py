"""What a run did to single prompts, with pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from t2ialign.evaluation.statistics import student_quantile
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir

TILE = 192  # pixels; larger images are shrunk, since the originals lie beside the page
EXTREMES = 4  # prompts shown on either side
IMAGES = 3  # images shown of each


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        uri: the PNG as a data URI.
        prompts: of its columns, from left to right, as far as the file says.
        explanations: reward -> what it had to say, as far as the file says.
    """

    uri: str
    width: int
    height: int
    prompts: tuple[str, ...]
    explanations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, rows: int = 1) -> Picture:
        """A PNG file of ``rows`` rows of images, shrunk to about ``TILE`` pixels a row."""
        with Image.open(path) as image:
            texts, told = image.info.get("prompts", ""), image.info.get("explanations", "{}")
            data, (width, height) = path.read_bytes(), image.size
            if image.height > 1.5 * TILE * rows:
                small = image.resize((max(1, image.width * TILE * rows // image.height), TILE * rows))
                buffer = io.BytesIO()
                small.save(buffer, format="PNG")
                data, (width, height) = buffer.getvalue(), small.size
        uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
        return cls(uri, width, height, tuple(texts.split("\n")) if texts else (), json.loads(told))


@dataclass(frozen=True)
class Change:
    """What the run did to one prompt: mean scores over its images, and some of them as base and as tuned."""

    prompt: str
    base: float
    tuned: float
    pictures: dict[str, list[Picture]]


def changes(run: RunDir, reward: str) -> dict[str, list[Change]]:
    """The prompts that gained and lost most under ``reward``, the largest first; images without a score are left out,
    and so are prompts that changed by no more than the noise of their images.

    Returns:
        "gain" and "loss" -> at most ``EXTREMES`` prompts each.
    """
    folder, noise = run.path / "evaluation", noise_of_a_prompt(run, reward) or 0.0
    means = []
    for prompt, rows in _pairs(run, reward).items():
        numbers, base, tuned = zip(*rows, strict=True)
        before, after = sum(base) / len(rows), sum(tuned) / len(rows)
        if abs(after - before) * len(rows) ** 0.5 > noise:
            means.append((prompt, before, after, numbers))
    means.sort(key=lambda one: one[1] - one[2])

    def shown(prompt: str, base: float, tuned: float, numbers: Sequence[int]) -> Change:
        saved = [f"{number:05d}.png" for number in numbers if (folder / "tuned" / f"{number:05d}.png").exists()]
        pictures = {v: [Picture.read(folder / v / file) for file in saved[:IMAGES]] for v in ("base", "tuned")}
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
