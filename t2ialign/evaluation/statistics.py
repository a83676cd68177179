"""What scores say, and how sure that is; docs/statistics.md states every formula. No torch.

A prompt is one observation: its images are averaged first, since they are not independent, and however often a prompt
is repeated it stays one. A score that is missing (None or not finite) counts for nothing; where nothing is left, or one
prompt alone, there is None instead of a number.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2ialign.spec.prompts import data_of

Values = Sequence[float | None]
Interval = tuple[float, float]
CONFIDENCE = 0.95
#: Two scores of an image are equal if they differ by less than this share of the largest score: the same image drawn in
#: another batch, or by another number of processes, differs in its last bits.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts.

    Attributes:
        se: its standard error; None below two prompts.
        prompts: distinct prompts that it is over.
        images: images that it is over.
    """

    mean: float | None
    se: float | None
    prompts: int
    images: int

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean: Student's t with one degree of freedom less than prompts."""
        if self.mean is None or self.se is None:
            return None
        reach = student_quantile(self.prompts - 1) * self.se
        return self.mean - reach, self.mean + reach


def estimate(values: Values, prompts: Sequence[str]) -> Estimate:
    """Mean over prompts of the means of their images.

    Args:
        values: one per image.
        prompts: of every image.
    """
    images: dict[str, list[float]] = defaultdict(list)
    for value, prompt in zip(values, prompts, strict=True):
        if value is not None and math.isfinite(value):
            images[prompt].append(value)
    means = [statistics.fmean(group) for group in images.values()]
    return Estimate(
        statistics.fmean(means) if means else None,
        statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None,
        len(means),
        sum(map(len, images.values())),
    )


def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors a two-sided interval reaches to either side."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def wilson_interval(rate: float, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a rate over ``count`` observations (Wilson, J. Am. Stat. Assoc. 22, 1927); inside [0, 1]."""
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    shrunk = (rate + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, shrunk - reach), min(1.0, shrunk + reach)


def paired(base: Values, other: Values, prompts: Sequence[str]) -> dict[str, Any]:
    """One variant against the base, over the images for which both have a score.

    Returns:
        "difference", "se", "ci95"; "win_rate" (ties count half) and "win_ci95"; "base" and "mean", the two means over
        the same images; "direction": "up" or "down" where the interval leaves out 0, else "unclear"; "images" and
        "prompts" that this is over, "left_out", the images that lack a score.
    """
    rows = [row for row, pair in enumerate(zip(base, other, strict=True)) if all(map(_known, pair))]
    ours, theirs, texts = [base[row] for row in rows], [other[row] for row in rows], [prompts[row] for row in rows]
    changes = [there - here for here, there in zip(ours, theirs, strict=True) if here is not None and there is not None]
    difference = estimate(changes, texts)
    tie = ROUNDING * max((abs(score) for score in [*ours, *theirs] if score is not None), default=0.0)
    wins = estimate([0.5 if abs(change) <= tie else float(change > 0) for change in changes], texts)
    interval = difference.interval
    return {
        "difference": difference.mean,
        "se": difference.se,
        "ci95": interval and list(interval),
        "win_rate": wins.mean,
        "win_ci95": None if wins.mean is None else list(wilson_interval(wins.mean, wins.prompts)),
        "base": estimate(ours, texts).mean,
        "mean": estimate(theirs, texts).mean,
        "direction": interval and ("up" if interval[0] > 0 else "down" if interval[1] < 0 else "unclear"),
        "images": len(rows),
        "prompts": difference.prompts,
        "left_out": len(base) - len(rows),
    }


def compare(scores: Mapping[str, Mapping[str, Values]], prompts: Sequence[str], names: Iterable[str]) -> dict[str, Any]:
    """Means per variant and each further variant paired against the first, which is the base.

    A variant's mean is over the images that count in its pair, the base's over those that count in any.

    Args:
        scores: variant -> name -> one value per image.
        prompts: of every image.
        names: what to report, in this order.
    """
    base, *others = scores
    names = list(names)

    def counted(variant: str, name: str) -> Values:
        partners = others if variant == base else [base]
        columns = [scores[partner][name] for partner in partners] or [scores[variant][name]]
        return [
            v if any(_known(column[row]) for column in columns) else None for row, v in enumerate(scores[variant][name])
        ]

    def mean(variant: str, name: str) -> dict[str, float | None]:
        found = estimate(counted(variant, name), prompts)
        return {"mean": found.mean, "se": found.se}

    return {
        "images": len(prompts),
        "prompts": len(set(prompts)),
        "variants": {variant: {name: mean(variant, name) for name in names} for variant in scores},
        "paired": {v: {n: paired(scores[base][n], scores[v][n], prompts) for n in names} for v in others},
    }


def summarise(
    scores: Mapping[str, Mapping[str, Values]],
    prompts: Sequence[str],
    names: Sequence[str],
    held_out: Sequence[str] = (),
    categories: Sequence[str | None] = (),
) -> dict[str, Any]:
    """``summary.json``: see ``compare``.

    Args:
        names: rewards in the order of the table, the optimised ones first.
        held_out: those that are not optimised.
        categories: of every image's prompt, where there are any: the same is said of each.
    """
    summary = compare(scores, prompts, names)
    summary["held_out"] = list(held_out)
    summary["left_out"] = {
        name: most
        for name in names
        if (most := max((pair[name]["left_out"] for pair in summary["paired"].values()), default=0))
    }
    if found := sorted({category for category in categories if category is not None}):
        summary["categories"] = {category: _part(scores, prompts, names, categories, category) for category in found}
    return summary


def category_of(prompt: str) -> str | None:
    """What the prompt's file calls its kind: its category, else its tag, else its challenge."""
    data = {str(key).lower(): value for key, value in data_of(prompt).items()}
    found = next((data[key] for key in ("category", "tag", "challenge") if data.get(key)), None)
    return None if found is None else str(found)


def _part(
    scores: Mapping[str, Mapping[str, Values]],
    prompts: Sequence[str],
    names: Sequence[str],
    categories: Sequence[str | None],
    wanted: str,
) -> dict[str, Any]:
    rows = [row for row, category in enumerate(categories) if category == wanted]
    part = {v: {name: [columns[name][row] for row in rows] for name in names} for v, columns in scores.items()}
    return compare(part, [prompts[row] for row in rows], names)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
