"""The rows of an evaluation's summary, for terminals, Markdown and pages. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One variant against the base under one reward.

    Attributes:
        difference: mean over shared prompts and seeds of the variant minus the base; ``se`` is its standard error.
        ci95: 95 % interval of the difference.
        win_rate: share of images that score higher than the base's, ties counting half.
        cost: network evaluations of an image and their depth, where the evaluation counted them.
    """

    reward: str
    variant: str
    base: float
    mean: float
    difference: float
    se: float
    ci95: tuple[float, float]
    win_rate: float
    cost: dict[str, float] | None = None

    @property
    def in_se(self) -> str:
        """The difference in standard errors; "-" where there is no spread to measure it by."""
        return f"{self.difference / self.se:+.1f}" if self.se else "-"

    @property
    def measured(self) -> str:
        return f"{self.difference:+.4f} ± {self.se:.4f}"


def rows(summary: dict[str, Any]) -> Iterator[Row]:
    """All rewards in the summary's order, the optimised ones first, and under each all variants."""
    means, paired, costs = summary["variants"], summary["paired"], summary.get("cost", {})
    for name in means["base"]:
        for variant in paired:
            pair = paired[variant][name]
            yield Row(
                name,
                variant,
                means["base"][name]["mean"],
                means[variant][name]["mean"],
                pair["difference"],
                pair["se"],
                (pair["ci95"][0], pair["ci95"][1]),
                pair["win_rate"],
                costs.get(variant),
            )


def caption(summary: dict[str, Any]) -> str:
    """How much was evaluated."""
    return f"{summary['images']} images of {summary['prompts']} prompts, shared seeds"


def table_header(summary: dict[str, Any]) -> list[str]:
    """Columns of ``table_rows``; further samplers bring the variant's name and what an image of it cost."""
    means = ["variant", "evaluations", "depth", "base", "mean"] if "cost" in summary else ["base", "tuned"]
    return ["reward", *means, "difference", "in s.e.", "win rate"]


def table_rows(summary: dict[str, Any]) -> list[list[str]]:
    """One row per reward and variant; the difference has its standard error."""
    return [
        [
            row.reward,
            *([row.variant, f"{row.cost['evaluations']:g}", f"{row.cost['depth']:g}"] if row.cost else []),
            f"{row.base:.4g}",
            f"{row.mean:.4g}",
            row.measured,
            row.in_se,
            f"{row.win_rate:.0%}",
        ]
        for row in rows(summary)
    ]


def table(summary: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    header = table_header(summary)
    lines = [header, ["---"] * len(header), *table_rows(summary)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{caption(summary)}; ± is one standard error over prompts.\n"
