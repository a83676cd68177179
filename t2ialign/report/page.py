"""One page about a run: what it was, what it gave, how it went. It needs the run directory alone, and no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from t2ialign.errors import UsageError
from t2ialign.evaluation import comparison
from t2ialign.report import curves, verdict
from t2ialign.report.changes import changes, noise_of_a_prompt, pairs
from t2ialign.report.pictures import Picture, tiles
from t2ialign.spec import toml
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir

FILE = "report.html"
GRIDS = 12  # grids on the page, the first and the last among them


def write(run: RunDir, out: Path | None = None) -> Path:
    """Write the page to ``out``, by default ``report.html`` in the run directory; returns where it is."""
    path = out or run.path / FILE
    files.write_text(path, page(run))
    return path


def page(run: RunDir) -> str:
    """The run as one HTML page that loads nothing from anywhere. What the run has not got is left out."""
    spec_text = (run.path / "spec.toml").read_text(encoding="utf-8")
    spec, environment = toml.loads(spec_text), _environment(run)
    summary, metrics = run.summary(), run.history()
    base = summary["variants"]["base"] if summary else {}
    drift = _drift(metrics, summary)
    constant = {**verdict.constants(metrics), **verdict.constants(run.timing())}
    apart = {_label(reward) for reward in spec["reward"] if reward["weight"] == 0}
    shown, groups = pairs(run), _varying(curves.grouped(history(run)), constant)
    found = changes(run, next(iter(base))) if base else {}
    usage, grids = verdict.use_it(run.path / "export"), _grids(run.path / "samples")
    contents = [
        ("compared", "base against tuned", True),
        ("drift", "drift", bool(drift)),
        ("curves", "curves", True),
        ("samples", "samples", bool(grids)),
        ("prompts", "prompt by prompt", bool(found)),
        ("use", "use it", bool(usage)),
        ("repeat", "repeat it", True),
    ]
    return (
        templates()
        .get_template("report.html")
        .render(
            name=spec["run"]["name"],
            state=_state(run, metrics, summary),
            facts=_facts(spec, environment, run.timing()),
            rows=list(comparison.rows(summary)) if summary else [],
            caption=comparison.caption(summary) if summary else "",
            costs=bool(summary and "cost" in summary),
            pairs=shown,
            picture=None if shown else _pairs(run, summary),
            categories=comparison.category_rows(summary) if summary else [],
            looks=list(comparison.rows(summary["image_statistics"]))
            if summary and "image_statistics" in summary
            else [],
            drift=drift,
            groups=groups,
            kinds=_kinds(groups),
            contents=contents,
            constant=constant,
            verdict=verdict.verdict(summary, run.timing(), _duration(sum(line["seconds"] for line in run.timing()))),
            use_it=usage,
            held_out=apart,
            plot=curves,
            short=comparison.short,
            grids=grids,
            reward=next(iter(base), ""),
            changes=found,
            noise=noise_of_a_prompt(run, next(iter(base))) if base else None,
            spec_text=spec_text,
            environment=json.dumps(environment, indent=2, ensure_ascii=False),
        )
    )


def templates(*packages: str) -> jinja2.Environment:
    """The pages' templates: those of further packages before the report's own."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (*packages, "t2ialign.report")]),
        autoescape=True,  # prompts and names are other people's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def history(run: RunDir) -> curves.History:
    """What the curves of a run are drawn from."""
    summary, metrics = run.summary(), run.history()
    return curves.History(metrics, run.timing(), _bases(metrics, summary["variants"]["base"] if summary else {}))


def _varying(groups: Mapping[str, list[curves.Chart]], constant: Collection[str]) -> dict[str, list[curves.Chart]]:
    """The charts without those of constant series."""
    kept = {
        group: [chart for chart in found if next(iter(chart.values())).name not in constant]
        for group, found in groups.items()
    }
    return {group: found for group, found in kept.items() if found}


def _kinds(groups: Mapping[str, list[curves.Chart]]) -> dict[str, bool]:
    """Which marks the charts have, for the legend."""
    drawn = [curve for charts in groups.values() for chart in charts for curve in chart.values()]
    return {
        "mean": any(curve.mean for curve in drawn),
        "dots": any(curve.dots for curve in drawn),
        "band": any(curve.band for curve in drawn),
        "base": any(curve.base is not None for curve in drawn),
    }


def _bases(metrics: Sequence[dict[str, Any]], base: dict[str, Any]) -> dict[str, float]:
    """What the base gives on the images of each curve: step 0, or else the last evaluation."""
    first = {name: value for name, value in metrics[0].items() if value is not None} if metrics else {}
    if first.get("step") == 0:
        return {name: value for name, value in first.items() if name.startswith(("evaluation/", "image/"))}
    return {f"evaluation/{name}": value["mean"] for name, value in base.items() if value["mean"] is not None}


def _drift(metrics: Sequence[dict[str, Any]], summary: dict[str, Any] | None) -> dict[str, Any] | None:
    """Where evaluations along the run raised the alarm, and what the last evaluation says; None: nobody looked."""
    looked = [line for line in metrics if "evaluation/drift" in line and line["step"]]
    if not looked and (summary is None or "drift" not in summary):
        return None
    return {
        "looked": len(looked),
        "steps": [line["step"] for line in looked if line["evaluation/drift"]],
        "last": [found["words"] for found in (summary or {}).get("drift", [])],
    }


def _environment(run: RunDir) -> dict[str, Any]:
    file = run.path / "environment.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: fact for name, fact in found.items() if name != "finished"}  # the page says so on top


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


def _grids(folder: Path) -> list[tuple[int, list[Picture]]]:
    """Step and images of at most ``GRIDS`` sample grids, evenly spread."""
    found = sorted(folder.glob("step-*.png"))
    if len(found) > GRIDS:
        found = [found[i * (len(found) - 1) // (GRIDS - 1)] for i in range(GRIDS)]
    return [(int(file.stem.removeprefix("step-")), tiles(file)) for file in found]
