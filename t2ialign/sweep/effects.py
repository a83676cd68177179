"""What a sweep found: every run, the marginal effect of every key, the winner. No torch."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from t2ialign.evaluation.comparison import short
from t2ialign.report.curves import ticks
from t2ialign.report.page import templates

WIDTH, HEIGHT, LEFT, BOTTOM = 320, 200, 52, 34

Result = Mapping[str, Any]


def effects(results: Sequence[Result]) -> dict[str, list[dict[str, Any]]]:
    """Key -> its values with the mean over all runs that have it, how many those are, and their spread.

    Numbers are in order; where a key has more than six, they are parted into at most five groups of equal size.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    done = [result for result in results if result["score"] is not None]
    for key in done[0]["point"] if done else ():
        for label, group in _groups([(result["point"][key], result["score"]) for result in done]):
            spread = statistics.stdev(group) / len(group) ** 0.5 if len(group) > 1 else None
            row = {"value": label, "mean": statistics.fmean(group), "se": spread, "runs": len(group)}
            found.setdefault(key, []).append(row)
    return found


def _groups(pairs: Sequence[tuple[Any, float]]) -> list[tuple[str, list[float]]]:
    values = list(dict.fromkeys(str(value) for value, _ in pairs))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in pairs):
        ordered = sorted(pairs)
        if len(values) > 6:
            count = min(5, len(ordered) // 2)
            cut = [ordered[i * len(ordered) // count : (i + 1) * len(ordered) // count] for i in range(count)]
            return [(f"{part[0][0]:g} to {part[-1][0]:g}", [score for _, score in part]) for part in cut]
        values = list(dict.fromkeys(str(value) for value, _ in ordered))
    return [(value, [score for other, score in pairs if str(other) == value]) for value in values]


def winner(results: Sequence[Result]) -> Result | None:
    """The run with the highest score on the held-out prompts."""
    return max((r for r in results if r["score"] is not None), key=lambda r: r["score"], default=None)


def table(results: Sequence[Result], reward: str) -> list[list[str]]:
    """Header and a line for each run, the best first."""
    keys = list(results[0]["point"]) if results else []
    header = ["run", *keys, f"{reward}, held-out prompts", "difference from base", "in s.e."]
    ordered = sorted(results, key=lambda r: (r["score"] is None, -(r["score"] or 0.0)))
    lines = []
    for r in ordered:
        measured = r.get("difference")
        in_se = f"{measured / r['se']:+.1f}" if measured is not None and r.get("se") else "-"
        score = short(r["score"]) if r["score"] is not None else r.get("error", "not finished")
        lines.append([r["run"], *(str(r["point"][key]) for key in keys), score, short(measured), in_se])
    return [header, *lines]


def as_csv(results: Sequence[Result], reward: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table(results, reward))
    return text.getvalue()


def as_markdown(results: Sequence[Result], reward: str) -> str:
    """All runs, then every key's marginal effect."""
    text = _markdown(table(results, reward)) + f"\n\n{caption(results, reward)}\n"
    for key, rows in effects(results).items():
        lines = [[row["value"], str(row["runs"]), _measured(row)] for row in rows]
        text += f"\n{_markdown([[key, 'runs', f'mean {reward}'], *lines])}\n"
    return text


def caption(results: Sequence[Result], reward: str) -> str:
    best = winner(results)
    count = sum(r["score"] is not None for r in results)
    text = f"{count} of {len(results)} runs evaluated, all on the same held-out prompts and seeds."
    if best is None:
        return text
    chosen = ", ".join(f"{key} = {value}" for key, value in best["point"].items())
    return (
        f"{text} Best {reward}: {best['run']} ({chosen}). The best of {count} on prompts that chose it is flattered by"
        " chance: evaluate it on other prompts before you quote its number."
    )


def _measured(row: Mapping[str, Any]) -> str:
    return short(row["mean"]) + (f" ± {row['se']:.2g}" if row["se"] is not None else "")


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    header, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body])


def page(name: str, results: Sequence[Result], reward: str) -> str:
    """One HTML page that loads nothing: the table, and a plot of each key's marginal effect."""
    plots = {key: _plot(rows) for key, rows in effects(results).items()}
    return (
        templates("t2ialign.sweep")
        .get_template("sweep.html")
        .render(
            name=name,
            reward=reward,
            lines=table(results, reward),
            caption=caption(results, reward),
            plots=plots,
            size={"width": WIDTH, "height": HEIGHT, "left": LEFT, "bottom": BOTTOM},
        )
    )


def _plot(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    reach = [row["se"] or 0.0 for row in rows]
    low = min(row["mean"] - half for row, half in zip(rows, reach, strict=True))
    high = max(row["mean"] + half for row, half in zip(rows, reach, strict=True))
    air = 0.1 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - air, high + air

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - 8), 1)

    step = (WIDTH - LEFT - 12) / len(rows)
    points = [
        {
            "x": round(LEFT + (place + 0.5) * step, 1),
            "y": y(row["mean"]),
            "top": y(row["mean"] + half),
            "bottom": y(row["mean"] - half),
            "label": row["value"],
            "words": f"{row['value']}: {_measured(row)} over {row['runs']} runs",
        }
        for place, (row, half) in enumerate(zip(rows, reach, strict=True))
    ]
    return {"points": points, "ticks": [(y(value), label) for value, label in ticks(low, high, 4)]}
