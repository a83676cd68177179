"""What a bench found, as JSON, CSV, Markdown and rows for terminals and pages. No torch."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from t2ialign.bench.folder import BenchFolder
from t2ialign.bench.suites import Item, Suited
from t2ialign.evaluation.comparison import DIRECTIONS, short
from t2ialign.evaluation.statistics import Estimate, compare, estimate

Number = float | None
COSTS = ("evaluations", "depth", "seconds")


def summarise(folder: BenchFolder, suited: Suited, items: Sequence[Item], variants: Sequence[str]) -> dict[str, Any]:
    """``summary.json``: means with 95 % intervals over prompts, differences from the first variant on the same prompts
    and seeds, each over all and per category; and what an image of a variant cost."""
    drawn, scores = folder.drawn(), folder.scores()
    names = list(dict.fromkeys(name for scored in scores.values() for name in scored))
    prompts = [f"{item.list}\0{item.prompt}" for item in items]
    values = {
        v: {name: [scores.get((v, item.file), {}).get(name) for item in items] for name in names} for v in variants
    }
    of = [suited.categories(item) for item in items]
    categories: dict[str, Any] = {}
    for category in dict.fromkeys(name for found in of for name in found):
        rows = [row for row, found in enumerate(of) if category in found]
        part = {
            v: {name: [column[row] for row in rows] for name, column in found.items()} for v, found in values.items()
        }
        categories[category] = _part(part, [prompts[row] for row in rows], names)
    summary: dict[str, Any] = {
        "suite": suited.suite.title,
        "images_per_prompt": suited.suite.images_per_prompt,
        **_part(values, prompts, names),
        "cost": {v: _cost([drawn[v, item.file] for item in items if (v, item.file) in drawn]) for v in variants},
    }
    summary["missing"] = {
        v: {name: count for name in names if (count := sum(value is None for value in values[v][name]))}
        for v in variants
    }
    if categories:
        summary["categories"] = categories
    if len(categories) > 1 and len(suited.suite.groups) < 2:  # one division, as GenEval's six tags
        summary["mean_over_categories"] = {
            v: {name: _mean([part["variants"][v][name]["mean"] for part in categories.values()]) for name in names}
            for v in variants
        }
    return summary


def _part(
    values: Mapping[str, Mapping[str, Sequence[Number]]], prompts: Sequence[str], names: list[str]
) -> dict[str, Any]:
    found = compare(values, prompts, names)
    found["variants"] = {
        v: {name: _described(estimate(column[name], prompts)) for name in names} for v, column in values.items()
    }
    return found


def _described(found: Estimate) -> dict[str, Any]:
    return {"mean": found.mean, "se": found.se, "ci95": found.interval and list(found.interval), "images": found.images}


def _cost(lines: Sequence[Mapping[str, float]]) -> dict[str, Number]:
    """Medians, which the first image's warming up does not move."""
    return {key: statistics.median([line[key] for line in lines]) if lines else None for key in COSTS}


def _mean(values: Sequence[Number]) -> Number:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class Row:
    """One variant under one reward, over all prompts or those of a category; None: no number.

    Attributes:
        category: "" over all.
        low, high: 95 % interval of the mean.
        difference: from the first variant, on the same prompts and seeds; ``difference_low`` to ``difference_high`` is
            its 95 % interval.
    """

    reward: str
    category: str
    variant: str
    prompts: int
    images: int
    evaluations: Number
    seconds: Number
    mean: Number
    low: Number
    high: Number
    difference: Number
    difference_low: Number
    difference_high: Number
    win_rate: Number
    direction: str | None

    @property
    def measured(self) -> str:
        """The mean and half its interval, and whether it lies above or below the base's beyond doubt."""
        if self.mean is None:
            return "-"
        reach = "" if self.low is None else f" ± {self.mean - self.low:.2g}"
        return f"{short(self.mean)}{reach}" + (f" {DIRECTIONS[self.direction]}" if self.direction else "")


def rows(summary: Mapping[str, Any]) -> Iterator[Row]:
    """Reward by reward, over all prompts first, then category by category."""
    parts = {"": summary, **summary.get("categories", {})}
    for reward in next(iter(summary["variants"].values()), {}):
        for category, part in parts.items():
            for variant, means in part["variants"].items():
                mean, cost = means[reward], summary["cost"][variant]
                pair = part["paired"].get(variant, {}).get(reward, {})
                low, high = mean["ci95"] or (None, None)
                least, most = pair.get("ci95") or (None, None)
                yield Row(
                    reward,
                    category,
                    variant,
                    part["prompts"],
                    mean["images"],
                    cost["evaluations"],
                    cost["seconds"],
                    mean["mean"],
                    low,
                    high,
                    pair.get("difference"),
                    least,
                    most,
                    pair.get("win_rate"),
                    pair.get("direction"),
                )


def as_csv(summary: Mapping[str, Any]) -> str:
    """All rows, one a line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows(summary))
    return text.getvalue()


def main_table(summary: Mapping[str, Any]) -> list[list[str]]:
    """Header and a line for each variant: what it cost, then every reward."""
    found = {(row.variant, row.reward): row for row in rows(summary) if not row.category}
    rewards = list(dict.fromkeys(reward for _, reward in found))
    lines = [["variant", "evaluations", "seconds", *rewards]]
    for variant, cost in summary["cost"].items():
        cells = [found[variant, reward].measured for reward in rewards]
        lines.append([variant, short(cost["evaluations"]), short(cost["seconds"]), *cells])
    return lines


def category_means(summary: Mapping[str, Any]) -> list[list[str]]:
    """Header and a line for each variant: the plain mean over categories, as GenEval's overall score; or nothing."""
    means = summary.get("mean_over_categories", {})
    lines = [[variant, *map(short, found.values())] for variant, found in means.items()]
    return [["mean of the categories", *next(iter(means.values()))], *lines] if means else []


def category_tables(summary: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Reward -> header and a line for each category."""
    variants = list(summary["variants"])
    tables: dict[str, dict[str, list[str]]] = {}
    for row in rows(summary):
        if row.category:
            line = tables.setdefault(row.reward, {}).setdefault(row.category, [row.category, str(row.prompts)])
            line.append(row.measured)
    return {reward: [["category", "prompts", *variants], *lines.values()] for reward, lines in tables.items()}


def caption(summary: Mapping[str, Any]) -> str:
    base = next(iter(summary["variants"]), "")
    return (
        f"{summary['suite']}: {summary['prompts']} prompts, {summary['images']} images of every variant, shared seeds;"
        f" mean ± half of the 95 % interval over prompts; ↑ ↓: the 95 % interval of the difference from {base}, on the"
        " same prompts and seeds, leaves out 0, ≈: it does not; evaluations and seconds (on a CPU: of its processor)"
        " of one image, medians"
    )


def as_markdown(summary: Mapping[str, Any]) -> str:
    text = _markdown(main_table(summary)) + f"\n\n{caption(summary)}\n"
    if over := category_means(summary):
        text += f"\n{_markdown(over)}\n"
    for reward, lines in category_tables(summary).items():
        text += f"\n## {reward} by category\n\n{_markdown(lines)}\n"
    return text


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    header, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body])
