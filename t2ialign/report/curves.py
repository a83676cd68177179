"""Curves of logged numbers: the geometry of small inline SVG charts. No torch, no drawing library."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 320, 160
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 20  # margins that the labels need
MOST_POINTS = 600  # twice the plot's width in pixels: more would not be seen
LARGEST = 1e300  # ranges of larger numbers overflow

#: (step, value); None where the value was no finite number.
Point = tuple[int, float | None]


@dataclass(frozen=True)
class Curve:
    """One metric's chart, ready to be drawn in a ``WIDTH`` x ``HEIGHT`` view box.

    Attributes:
        name: the metric, for example "reward/pickscore".
        raw: SVG path of the logged values.
        mean: SVG path of their running mean; empty for a metric that is measured rarely.
        dots: x and y of the values of such a metric.
        bars: x, top and bottom of the 95 % intervals of such values, where they were logged.
        base: y of the base model's value, where it is known.
        x_ticks, y_ticks: position and label.
        latest: the last value, as text.
        readings: JSON list of [x, step, value, running mean] of the drawn points.
        words: the curve in one sentence.
    """

    name: str
    raw: str
    mean: str
    dots: list[tuple[float, float]]
    bars: list[tuple[float, float, float]]
    base: float | None
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    latest: str
    readings: str
    words: str

    @property
    def label(self) -> str:
        """The name without its group."""
        return self.name.partition("/")[2] or self.name


def grouped(
    metrics: Sequence[Mapping[str, Any]], timing: Sequence[Mapping[str, Any]], bases: Mapping[str, float]
) -> dict[str, list[Curve]]:
    """A curve of every logged name, by the part before its "/"; evaluations first, since their prompts and seeds
    stay the same, then training rewards, which are over other prompts at every step; speed last.

    Names without a group, or alone in theirs, come together as "other".

    Args:
        metrics: the lines of metrics.jsonl.
        timing: the lines of timing.jsonl.
        bases: what the base model gives, by metric.
    """
    groups: dict[str, list[Curve]] = {"evaluation": [], "reward": []}
    for name in _names(metrics):
        if name.endswith("/ci95"):
            continue
        points, reach = _points(metrics, name), dict(_points(metrics, f"{name}/ci95"))
        curve = draw(name, points, metrics[-1]["step"], len(metrics), bases.get(name), reach)
        groups.setdefault(name.partition("/")[0], []).append(curve)
    kept = {group: found for group, found in groups.items() if len(found) > 1 or group in ("reward", "evaluation")}
    others = [curve for group, found in groups.items() if group not in kept for curve in found]
    speed = [draw(name, _points(timing, name), timing[-1]["step"], len(timing)) for name in _names(timing)]
    return {group: found for group, found in {**kept, "other": others, "speed": speed}.items() if found}


def draw(
    name: str,
    points: Sequence[Point],
    last: int,
    logged: int,
    base: float | None = None,
    reach: Mapping[int, float | None] | None = None,
) -> Curve:
    """The chart of one metric.

    Args:
        points: its values in the order of their steps, at least one.
        last: the run's last step, where the x axis ends; it starts at step 0.
        logged: steps that were logged; a metric with at most half as many values gets dots and no running mean.
        base: a value to mark across the chart.
        reach: step -> half the length of the 95 % interval of the value.
    """
    rare = 2 * len(points) <= logged or name.startswith("evaluation/")
    means = [None] * len(points) if rare else running_mean([v for _, v in points], max(2, min(25, len(points) // 40)))
    finite = [value for _, value in points if value is not None]
    edges = [(at, v - half, v + half) for at, v in points if v is not None and (half := (reach or {}).get(at))]
    ends = [end for _, *pair in edges for end in pair]
    low, high = _range([*finite, *ends, *([] if base is None else [base])])

    def x(step: float) -> float:
        return round(LEFT + step / max(1, last) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    shown = [(step, value, means[i]) for i in thin([v for _, v in points]) for step, value in [points[i]]]
    raw = [(x(step), None if value is None else y(value)) for step, value, _ in shown]
    words = f"{name} at {len(points)} of {logged} steps: "
    words += f"from {_short(finite[0])} to {_short(finite[-1])}, " if finite else ""
    words += f"lowest {_short(min(finite))}, highest {_short(max(finite))}" if finite else "no finite value"
    return Curve(
        name,
        _path(raw),
        _path([(x(step), None if mean is None else y(mean)) for step, _, mean in shown]),
        [(px, py) for px, py in raw if py is not None] if rare else [],
        [(x(at), y(top), y(bottom)) for at, bottom, top in edges],
        None if base is None else y(base),
        [(x(value), text) for value, text in ticks(0, max(1, last), 5, whole=True)],
        [(y(value), text) for value, text in ticks(low, high, 5)],
        _short(points[-1][1]),
        json.dumps([[x(step), step, _rounded(value), _rounded(mean)] for step, value, mean in shown]),
        words,
    )


def running_mean(values: Sequence[float | None], reach: int) -> list[float | None]:
    """Mean of every value and its ``reach`` neighbours on either side; None does not count, and is the mean of none."""
    means: list[float | None] = []
    for at in range(len(values)):
        known = [value for value in values[max(0, at - reach) : at + reach + 1] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def thin(values: Sequence[float | None], most: int = MOST_POINTS) -> list[int]:
    """Indices of at most ``most`` values that keep every peak: the lowest and the highest of each stretch."""
    if len(values) <= most:
        return list(range(len(values)))
    length = math.ceil(2 * len(values) / most)
    kept: set[int] = set()
    for start in range(0, len(values), length):
        stretch = range(start, min(start + length, len(values)))
        known = [(value, index) for index in stretch if (value := values[index]) is not None]
        kept |= {min(known)[1], max(known)[1]} if known else {start}
    return sorted(kept)


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers in [low, high], about ``most`` of them, and their labels."""
    raw = (high - low) / most
    power = math.floor(math.log10(raw))
    step = next(m * 10.0**power for m in (1, 2, 5, 10) if m * 10.0**power >= raw * 0.999)
    if whole:
        step = max(1.0, step)
    values = [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    largest = math.floor(math.log10(max(abs(low), abs(high))))
    finest = math.floor(math.log10(step) + 1e-9)
    digits = largest - (min(finest, 0) if largest < 6 else finest) + 1
    return [(value, f"{value:.{max(digits, 1)}g}") for value in values]


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line if name != "step"))


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    return [(line["step"], _finite(line[name])) for line in lines if name in line]


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < LARGEST else None


def _range(values: Sequence[float]) -> tuple[float, float]:
    """What the y axis spans: the values and a little air, or something around a constant."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    size = max(abs(low), abs(high))
    air = 0.05 * (high - low) if high - low > 1e-9 * size else 0.5 * size or 0.5
    return low - air, high + air


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    """Lines between neighbours; a gap where y is None. A lonely point is a line to itself, which round caps show."""
    commands = []
    for (_, before), (x, y) in pairwise([(0.0, None), *points]):
        if y is not None:
            commands.append(f"L{x:g} {y:g}" if before is not None else f"M{x:g} {y:g}h0")
    return "".join(commands)


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
