"""The rows of an evaluation's summary, for terminals, Markdown and pages. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

Number = float | None
DIRECTIONS = {"up": "↑", "down": "↓", "unclear": "≈", None: "-"}


@dataclass(frozen=True)
class Row:
    """One variant against the base under one reward, over the pairs in which both have a score; None: no number.

    Attributes:
        held_out: not optimised.
        base, mean: of the base and the variant, over the same images.
        difference: mean over prompts of the variant minus the base; ``se`` is its standard error.
        ci95: 95 % interval of the difference.
        win_rate: share of images that score higher than the base's, ties counting half; ``win_ci95`` is its interval.
        direction: "up" or "down" where the interval leaves out 0, else "unclear".
        left_out: images that lack a score.
        cost: network evaluations of an image and their depth, where the evaluation counted them.
    """

    reward: str
    variant: str
    held_out: bool
    base: Number
    mean: Number
    difference: Number
    se: Number
    ci95: tuple[float, float] | None
    win_rate: Number
    win_ci95: tuple[float, float] | None
    direction: str | None
    left_out: int
    cost: dict[str, float] | None = None

    @property
    def in_se(self) -> str:
        """The difference in standard errors; "-" where there is no spread to measure it by."""
        return f"{self.difference / self.se:+.1f}" if self.difference is not None and self.se else "-"

    @property
    def measured(self) -> str:
        """The difference and its standard error, to digits that show the error."""
        if self.difference is None:
            return "-"
        digits = self.digits
        return f"{self.difference:+.{digits}f}" + (f" ± {self.se:.{digits}f}" if self.se is not None else "")

    @property
    def digits(self) -> int:
        return max(4, 1 - math.floor(math.log10(self.se))) if self.se else 4

    @property
    def interval(self) -> str:
        return "{:+.{d}f} to {:+.{d}f}".format(*self.ci95, d=self.digits) if self.ci95 else "-"

    @property
    def bar(self) -> tuple[float, float, float] | None:
        """Where the interval begins, how long it is, and where 0 is, in percent of a bar that just holds both."""
        if not self.ci95:
            return None
        low, high = min(0.0, self.ci95[0]), max(0.0, self.ci95[1])
        if low == high:
            return 50.0, 0.0, 50.0
        scale = 100 / (high - low)
        begin, length = (self.ci95[0] - low) * scale, (self.ci95[1] - self.ci95[0]) * scale
        return round(begin, 1), round(length, 1), round(-low * scale, 1)

    @property
    def wins(self) -> str:
        """The win rate with its interval."""
        if self.win_rate is None:
            return "-"
        low_high = " ({:.0f}–{:.0f})".format(*(100 * edge for edge in self.win_ci95)) if self.win_ci95 else ""
        return f"{100 * self.win_rate:.0f} %{low_high}"

    @property
    def arrow(self) -> str:
        return DIRECTIONS[self.direction]


def rows(summary: dict[str, Any], held_out: Collection[str] | None = None) -> Iterator[Row]:
    """All rewards in the summary's order, the optimised ones first, and under each all variants.

    Args:
        summary: or one of its categories, which leave it to the summary what is ``held_out``.
    """
    means, pairs, costs = summary["variants"], summary["paired"], summary.get("cost", {})
    apart = summary.get("held_out", ()) if held_out is None else held_out
    for name in means["base"]:
        for variant, rewards in pairs.items():
            pair = rewards[name]
            low_high, wins = pair["ci95"], pair.get("win_ci95")
            yield Row(
                name,
                variant,
                name in apart,
                pair.get("base", means["base"][name]["mean"]),  # evaluations of earlier versions lack some keys
                pair.get("mean", means[variant][name]["mean"]),
                pair["difference"],
                pair["se"],
                low_high and (low_high[0], low_high[1]),
                pair["win_rate"],
                wins and (wins[0], wins[1]),
                pair.get("direction"),
                pair.get("left_out", 0),
                costs.get(variant),
            )


def caption(summary: dict[str, Any]) -> str:
    """How much was evaluated, and what was not."""
    text = f"{summary['images']} images of {summary['prompts']} distinct prompts, shared seeds"
    missing = ", ".join(f"{name} {count}" for name, count in summary.get("left_out", {}).items())
    return f"{text}; images left out for want of a score: {missing}" if missing else text


def table_header(summary: dict[str, Any]) -> list[str]:
    """Columns of ``table_rows``; further samplers bring the variant's name and what an image of it cost."""
    means = ["variant", "evaluations", "depth", "base", "mean"] if "cost" in summary else ["base", "tuned"]
    left_out = ["left out"] if any(summary.get("left_out", {}).values()) else []
    return ["reward", *means, "difference", "", "in s.e.", "win rate", *left_out]


def table_rows(summary: dict[str, Any]) -> list[list[str]]:
    """One row per reward and variant; the difference has its standard error, held-out rewards are marked."""
    missing = "left out" in table_header(summary)
    return [
        [
            f"{row.reward} (held out)" if row.held_out else row.reward,
            *([row.variant, f"{row.cost['evaluations']:g}", f"{row.cost['depth']:g}"] if row.cost else []),
            *_numbers(row),
            *([str(row.left_out)] if missing else []),
        ]
        for row in rows(summary)
    ]


def category_rows(summary: dict[str, Any]) -> list[tuple[str, int, Row]]:
    """(category, its prompts, row) of every reward and variant, reward by reward."""
    apart, parts = summary.get("held_out", ()), summary.get("categories", {})
    found = [(name, part["prompts"], row) for name, part in parts.items() for row in rows(part, apart)]
    names = list(summary["variants"]["base"])
    return sorted(found, key=lambda one: names.index(one[2].reward))


def short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def table(summary: dict[str, Any]) -> str:
    """The comparison as Markdown, with the categories where prompts have some."""
    text = _markdown(table_header(summary), table_rows(summary))
    text += f"\n\n{caption(summary)}; ± is one standard error over distinct prompts. {LEGEND}\n"
    if categories := category_rows(summary):
        header = ["reward", "category", "prompts", "variant", "base", "mean", "difference", "", "in s.e.", "win rate"]
        lines = [[row.reward, name, str(count), row.variant, *_numbers(row)] for name, count, row in categories]
        text += f"\n{_markdown(header, lines)}\n"
    return text


LEGEND = "↑ ↓: the 95 % interval leaves out 0; ≈: it does not. Ties count half in win rates."


def _numbers(row: Row) -> list[str]:
    return [short(row.base), short(row.mean), row.measured, row.arrow, row.in_se, row.wins]


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])
