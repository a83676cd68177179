"""A bench on one page: quality against evaluations, tables, the same prompts as every variant draws them. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2ialign.bench import results
from t2ialign.bench.folder import BenchFolder
from t2ialign.bench.suites import Item
from t2ialign.report.curves import ticks
from t2ialign.report.page import templates
from t2ialign.report.pictures import Picture

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 110, 12, 36
APART = 7  # pixels between variants of equal cost
SHOWN = 6  # prompts with pictures


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    top: float
    bottom: float
    variant: str
    words: str


@dataclass(frozen=True)
class Plot:
    """Quality against evaluations under one reward, ready to be drawn; ticks are position and label."""

    reward: str
    points: list[Point]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]

    @property
    def words(self) -> str:
        return f"{self.reward} against network evaluations of an image: " + "; ".join(p.words for p in self.points)


def plots(summary: Mapping[str, Any]) -> list[Plot]:
    """One for each reward; evaluations on a logarithmic axis."""
    found: dict[str, list[results.Row]] = {}
    for row in results.rows(summary):
        if not row.category and row.mean is not None:
            found.setdefault(row.reward, []).append(row)
    return [_plot(reward, rows) for reward, rows in found.items()]


def _plot(reward: str, rows: Sequence[results.Row]) -> Plot:
    costs = [max(row.evaluations or 1.0, 1.0) for row in rows]
    edges = [edge for row in rows for edge in (row.low, row.high, row.mean) if edge is not None]
    low, high = min(edges), max(edges)
    air = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - air, high + air
    first, last = math.log(min(costs)), math.log(max(costs))

    def x(cost: float) -> float:
        share = (math.log(cost) - first) / (last - first) if last > first else 0.5
        return LEFT + 14 + share * (WIDTH - LEFT - RIGHT - 28)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    points = []
    for number, (row, cost) in enumerate(zip(rows, costs, strict=True)):
        assert row.mean is not None
        place = round(x(cost) + APART * costs[:number].count(cost), 1)
        ends = y(row.high if row.high is not None else row.mean), y(row.low if row.low is not None else row.mean)
        words = f"{row.variant} {row.measured} at {cost:g}"
        points.append(Point(place, y(row.mean), *ends, row.variant, words))
    x_ticks = [(round(x(cost), 1), f"{cost:g}") for cost in sorted(set(costs))]
    return Plot(reward, points, x_ticks, [(y(value), label) for value, label in ticks(low, high, 5)])


def page(folder: BenchFolder, summary: Mapping[str, Any], items: Sequence[Item], place: Mapping[str, Any]) -> str:
    """HTML that loads nothing from anywhere."""
    first = [item for item in items if item.image == 0]
    shown = [first[i * len(first) // min(SHOWN, len(first))] for i in range(min(SHOWN, len(first)))]
    pictures = {item.prompt: _pictures(folder, summary["variants"], item) for item in shown}
    return (
        templates("t2ialign.bench")
        .get_template("bench.html")
        .render(
            summary=summary,
            plots=plots(summary),
            main=results.main_table(summary),
            over=results.category_means(summary),
            categories=results.category_tables(summary),
            caption=results.caption(summary),
            pictures=pictures,
            place=place,
            geometry={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "bottom": BOTTOM},
        )
    )


def _pictures(folder: BenchFolder, variants: Iterable[str], item: Item) -> dict[str, Picture]:
    paths = {variant: folder.images / variant / item.file for variant in variants}
    return {variant: Picture.read(path) for variant, path in paths.items() if path.exists()}
