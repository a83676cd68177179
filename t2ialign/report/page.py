"""One page about a run: what it was, what it gave, how it went. It needs the run directory alone, and no torch."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from t2ialign.errors import UsageError
from t2ialign.evaluation import comparison
from t2ialign.report import curves
from t2ialign.spec import toml
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir

FILE = "report.html"
TILE = 192  # pixels; larger images are shrunk, since the originals lie beside the page
GRIDS = 12  # grids on the page, the first and the last among them
EXTREMES = 4  # prompts shown on either side
IMAGES = 3  # images shown of each


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        uri: the PNG as a data URI.
        prompts: of its columns, from left to right, as far as the file says.
    """

    uri: str
    width: int
    height: int
    prompts: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, rows: int = 1) -> Picture:
        """A PNG file of ``rows`` rows of images, shrunk to about ``TILE`` pixels a row."""
        with Image.open(path) as image:
            texts = image.info.get("prompts", "")
            data, (width, height) = path.read_bytes(), image.size
            if image.height > 1.5 * TILE * rows:
                small = image.resize((max(1, image.width * TILE * rows // image.height), TILE * rows))
                buffer = io.BytesIO()
                small.save(buffer, format="PNG")
                data, (width, height) = buffer.getvalue(), small.size
        uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
        return cls(uri, width, height, tuple(texts.split("\n")) if texts else ())


@dataclass(frozen=True)
class Change:
    """What the run did to one prompt: mean scores over its images, and some of them as base and as tuned."""

    prompt: str
    base: float
    tuned: float
    pictures: dict[str, list[Picture]]


def write(run: RunDir, out: Path | None = None) -> Path:
    """Write the page to ``out``, by default ``report.html`` in the run directory; returns where it is."""
    path = out or run.path / FILE
    files.write_text(path, page(run))
    return path


def page(run: RunDir) -> str:
    """The run as one HTML page that loads nothing from anywhere. What the run has not got is left out."""
    spec_text = (run.path / "spec.toml").read_text(encoding="utf-8")
    spec, environment = toml.loads(spec_text), _environment(run)
    summary, metrics = run.summary(), run.metrics()
    base = summary["variants"]["base"] if summary else {}
    bases = {f"evaluation/{name}": value["mean"] for name, value in base.items()}
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("t2ialign.report"),
        autoescape=True,  # prompts and names are other people's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html").render(
        name=spec["run"]["name"],
        state=_state(run, metrics, summary),
        facts=_facts(spec, environment, run.timing()),
        rows=list(comparison.rows(summary)) if summary else [],
        caption=comparison.caption(summary) if summary else "",
        costs=bool(summary and "cost" in summary),
        pairs=_pairs(run, summary),
        groups=curves.grouped(metrics, run.timing(), bases),
        held_out={_label(reward) for reward in spec["reward"] if reward["weight"] == 0},
        plot=curves,
        short=comparison.short,
        grids=_grids(run.path / "samples"),
        reward=next(iter(base), ""),
        changes=changes(run, next(iter(base))) if base else {},
        spec_text=spec_text,
        environment=json.dumps(environment, indent=2, ensure_ascii=False),
    )


def changes(run: RunDir, reward: str) -> dict[str, list[Change]]:
    """The prompts that gained and lost most under ``reward``, the largest first; images without a score are left out.

    Returns:
        "gain" and "loss" -> at most ``EXTREMES`` prompts each.
    """
    folder = run.path / "evaluation"
    rows_of: dict[str, list[tuple[int, float, float]]] = {}
    for row, line in enumerate(files.read_json_lines(folder / "scores.jsonl")):
        base, tuned = line["base"][reward], line["tuned"][reward]
        if base is not None and tuned is not None:
            rows_of.setdefault(line["prompt"], []).append((row, base, tuned))

    means = []
    for prompt, rows in rows_of.items():
        numbers, base, tuned = zip(*rows, strict=True)
        means.append((prompt, sum(base) / len(rows), sum(tuned) / len(rows), numbers))
    means.sort(key=lambda one: one[1] - one[2])

    def shown(prompt: str, base: float, tuned: float, numbers: Sequence[int]) -> Change:
        saved = [f"{number:05d}.png" for number in numbers if (folder / "tuned" / f"{number:05d}.png").exists()]
        pictures = {v: [Picture.read(folder / v / file) for file in saved[:IMAGES]] for v in ("base", "tuned")}
        return Change(prompt, base, tuned, pictures if saved else {})

    return {
        "gain": [shown(*one) for one in means[:EXTREMES] if one[2] > one[1]],
        "loss": [shown(*one) for one in means[: -EXTREMES - 1 : -1] if one[2] < one[1]],
    }


def _environment(run: RunDir) -> dict[str, Any]:
    file = run.path / "environment.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _state(run: RunDir, metrics: Sequence[dict[str, Any]], summary: dict[str, Any] | None) -> str:
    """Whether the run came to its end, else how far it came."""
    done = metrics[-1]["step"] if metrics else 0
    if summary and (run.path / "export").is_dir():
        return f"finished, {done} steps"
    try:
        spec = run.spec()
        return f"step {done} of {spec.optimizer_config.plan(spec).steps}"
    except UsageError:  # a plugin or a checkpoint of the run is not on this machine
        return f"step {done}"


def _facts(spec: dict[str, Any], environment: dict[str, Any], timing: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The headline: what was run, on what, when and for how long."""
    facts = {
        "optimizer": spec["optimizer"]["kind"],
        "backend": f"{spec['backend']['kind']} ({spec['backend']['checkpoint']})",
        "sampler": spec["sampler"]["kind"] if "sampler" in spec else "the model's own",
        "rewards": ", ".join(
            f"{_label(reward)} × {reward['weight']:g}" if reward["weight"] else f"{_label(reward)} (held out)"
            for reward in spec["reward"]
        ),
        "seed": str(spec["run"]["seed"]),
    }
    if timing:
        facts["time in steps"] = _duration(sum(line["seconds"] for line in timing))
    if environment:
        facts["device"] = environment["device"]
        facts["started"] = environment["started"].replace("T", " ").replace("+", " +")
    return facts


def _label(reward: dict[str, Any]) -> str:
    name: str = reward.get("name", reward["kind"])
    return name


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _pairs(run: RunDir, summary: dict[str, Any] | None) -> Picture | None:
    file = run.path / "evaluation" / "pairs.png"
    return Picture.read(file, len(summary["variants"])) if summary and file.exists() else None


def _grids(folder: Path) -> list[tuple[int, Picture]]:
    """Step and picture of at most ``GRIDS`` sample grids, evenly spread."""
    found = sorted(folder.glob("step-*.png"))
    if len(found) > GRIDS:
        found = [found[i * (len(found) - 1) // (GRIDS - 1)] for i in range(GRIDS)]
    return [(int(file.stem.removeprefix("step-")), Picture.read(file)) for file in found]
