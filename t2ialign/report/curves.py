"""Curves of logged numbers: the geometry of small inline SVG charts. No torch, no drawing library."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 320, 176
LEFT, RIGHT, TOP, BOTTOM = 58, 8, 8, 34  # margins that the labels need
MOST_POINTS = 600  # twice the plot's width in pixels: more would not be seen
LARGEST = 1e300  # ranges of larger numbers overflow

#: (step, value); None where the value was no finite number.
Point = tuple[int, float | None]
#: What the numbers of a name count, by how the name ends.
UNITS = {"images_per_second": "images/s", "seconds": "s", "_mb": "MB"}


@dataclass(frozen=True)
class Curve:
    """One metric of one run, ready to be drawn in a ``WIDTH`` x ``HEIGHT`` view box.

    Attributes:
        name: the metric, for example "reward/pickscore".
        raw: SVG path of the logged values.
        mean: SVG path of their running mean; empty for a metric that is measured rarely, or goes one way only.
        dots: SVG path of the values of a rare metric, a line of no length each.
        band: SVG path around what lies between the lowest and the highest; empty where only means were logged.
        bars: x, top and bottom of the 95 % intervals of such values, where they were logged.
        base: y of the base model's value, where it is known.
        x_ticks, y_ticks: position and label.
        span: the values at the bottom and the top of the plot, and the last step.
        latest: the last value, as text.
        readings: JSON list of [x, step, value, running mean] of the drawn points, and [lowest, highest] with a band.
        words: the curve in one sentence.
    """

    name: str
    raw: str
    mean: str
    dots: str
    band: str
    bars: list[tuple[float, float, float]]
    base: float | None
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    span: tuple[float, float, int]
    latest: str
    readings: str
    words: str

    @property
    def label(self) -> str:
        """The name without its group, in words."""
        return (self.name.partition("/")[2] or self.name).replace("_", " ")

    @property
    def unit(self) -> str:
        """What the vertical axis counts."""
        known = next((unit for end, unit in UNITS.items() if self.name.endswith(end)), None)
        return known if known is not None else "score" if self.name.startswith(("reward/", "evaluation/")) else "value"


@dataclass(frozen=True)
class History:
    """What a run logged: the lines of metrics.jsonl and of timing.jsonl, and what the base gives, by metric."""

    metrics: Sequence[Mapping[str, Any]]
    timing: Sequence[Mapping[str, Any]]
    bases: Mapping[str, float]


#: The curves of one metric in one chart: of every run that logged it, by the run's place.
Chart = dict[int, Curve]


def grouped(*runs: History) -> dict[str, list[Chart]]:
    """A chart of every logged name, by the part before its "/"; evaluations first, since their prompts and seeds
    stay the same, then training rewards, which are over other prompts at every step; speed last.

    Names without a group, or alone in theirs, come together as "further". Names that end in "/min", "/mean" and "/max"
    are one band. The runs of a chart share its axes.
    """
    groups: dict[str, list[Chart]] = {"evaluation": [], "reward": []}
    for name in dict.fromkeys(name for run in runs for name in _names(run.metrics)):
        ends = _band(name, runs)
        if not name.endswith("/ci95") and not (ends and not name.endswith("/mean")):
            groups.setdefault(name.partition("/")[0], []).append(_chart(name, [r.metrics for r in runs], runs, ends))
    kept = {group: found for group, found in groups.items() if len(found) > 1 or group in ("reward", "evaluation")}
    further = [chart for group, found in groups.items() if group not in kept for chart in found]
    clocks = dict.fromkeys(name for run in runs for name in _names(run.timing))
    speed = [_chart(name, [run.timing for run in runs], runs) for name in clocks]
    return {group: found for group, found in {**kept, "further": further, "speed": speed}.items() if found}


def _band(name: str, runs: Sequence[History]) -> tuple[str, str] | None:
    """The names of the lowest and the highest that belong to a name, where all three are logged."""
    stem, _, end = name.rpartition("/")
    known = {name for run in runs for name in _names(run.metrics)}
    if stem and end in ("min", "mean", "max") and {f"{stem}/{word}" for word in ("min", "mean", "max")} <= known:
        return f"{stem}/min", f"{stem}/max"
    return None


def _chart(
    name: str,
    lines: Sequence[Sequence[Mapping[str, Any]]],
    runs: Sequence[History],
    ends: tuple[str, str] | None = None,
) -> Chart:
    last = max(line["step"] for found in lines for line in found[-1:])

    def drawn(place: int, bounds: tuple[float, float] | None = None) -> Curve:
        found = lines[place]
        reach, band = dict(_points(found, f"{name}/ci95")), [dict(_points(found, end)) for end in ends or ()]
        return draw(name, _points(found, name), last, len(found), runs[place].bases.get(name), reach, band, bounds)

    chart = {place: drawn(place) for place, found in enumerate(lines) if _points(found, name)}
    if len(chart) == 1:
        return chart
    spans = [curve.span for curve in chart.values()]
    bounds = min(low for low, _, _ in spans), max(high for _, high, _ in spans)
    return {place: drawn(place, bounds) for place in chart}


def draw(
    name: str,
    points: Sequence[Point],
    last: int,
    logged: int,
    base: float | None = None,
    reach: Mapping[int, float | None] | None = None,
    band: Sequence[Mapping[int, float | None]] = (),
    bounds: tuple[float, float] | None = None,
) -> Curve:
    """The curve of one metric.

    Args:
        points: its values in the order of their steps, at least one.
        last: the run's last step, where the x axis ends; it starts at step 0.
        logged: steps that were logged; a metric with at most half as many values gets dots and no running mean.
        base: a value to mark across the chart.
        reach: step -> half the length of the 95 % interval of the value.
        band: the lowest and the highest, by step.
        bounds: of the y axis; by default what the values need.
    """
    rare = 2 * len(points) <= logged or name.startswith(("evaluation/", "image/"))
    values = [value for _, value in points]
    finite = [value for value in values if value is not None]
    smooth = rare or finite in (sorted(finite), sorted(finite, reverse=True))  # what goes one way has no noise
    means = [None] * len(points) if smooth else running_mean(values, max(2, min(25, len(points) // 40)))
    edges = [(at, v - half, v + half) for at, v in points if v is not None and (half := (reach or {}).get(at))]
    ends = [end for _, *pair in edges for end in pair]
    outer = [value for side in band for value in side.values() if value is not None]
    low, high = bounds or _range([*finite, *ends, *outer, *([] if base is None else [base])])

    def x(step: float) -> float:
        return round(LEFT + step / max(1, last) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    shown = [(step, value, means[i]) for i in thin(values) for step, value in [points[i]]]
    sides = [[(x(step), _or_none(y, side.get(step))) for step, _, _ in shown] for side in band]
    outside = [[_rounded(side.get(step)) for side in band] for step, _, _ in shown]
    raw = [(x(step), None if value is None else y(value)) for step, value, _ in shown]
    words = f"{name} at {len(points)} of {logged} steps: "
    words += f"from {_short(finite[0])} to {_short(finite[-1])}, " if finite else ""
    words += f"lowest {_short(min(finite))}, highest {_short(max(finite))}" if finite else "no finite value"
    return Curve(
        name,
        _path(raw),
        _path([(x(step), None if mean is None else y(mean)) for step, _, mean in shown]),
        "".join(f"M{px:g} {py:g}h0" for px, py in raw if py is not None) if rare else "",
        _around(*sides) if sides else "",
        [(x(at), y(top), y(bottom)) for at, bottom, top in edges],
        None if base is None else y(base),
        [(x(value), text) for value, text in ticks(0, max(1, last), 5, whole=True)],
        [(y(value), text) for value, text in ticks(low, high, 5)],
        (low, high, max(1, last)),
        _short(points[-1][1]),
        json.dumps([[x(s), s, _rounded(v), _rounded(m), *o] for (s, v, m), o in zip(shown, outside, strict=True)]),
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


def _around(low: Sequence[tuple[float, float | None]], high: Sequence[tuple[float, float | None]]) -> str:
    """A closed path along the highest and back along the lowest, over the steps that have both."""
    both = [(x, bottom, top) for (x, bottom), (_, top) in zip(low, high, strict=True) if None not in (bottom, top)]
    there, back = [f"{x:g} {top:g}" for x, _, top in both], [f"{x:g} {bottom:g}" for x, bottom, _ in reversed(both)]
    return f"M{'L'.join(there + back)}Z" if len(both) > 1 else ""


def _or_none(place: Callable[[float], float], value: float | None) -> float | None:
    return None if value is None else place(value)


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
