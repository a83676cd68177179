"""Does a run pay for its reward with something else? What an evaluation says about that. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Statistic -> the direction in which images degenerate: burnt out, crushed, garish, flat, empty, all alike.
DEGENERATE = {
    "image/dark": 1,
    "image/bright": 1,
    "image/saturation": 1,
    "image/contrast": -1,
    "image/edges": -1,
    "image/entropy": -1,
    "image/distance": -1,
}
LEAST = 0.5  # of the spread among the base's prompts: smaller shifts of a statistic are sure, but nobody sees them


@dataclass(frozen=True)
class Alarm:
    """Something that moved against the optimised reward.

    Attributes:
        name: of a held-out reward or an image statistic.
        difference: tuned minus base, over the same images; ``in_se`` in paired standard errors, infinite where all
            prompts moved alike.
    """

    name: str
    difference: float
    in_se: float

    @property
    def words(self) -> str:
        return f"{self.name} {self.difference:+.3g} ({self.in_se:+.1f} s.e.)"


def alarms(summary: Mapping[str, Any], threshold: float, variant: str = "tuned") -> list[Alarm]:
    """What went wrong while an optimised reward rose; nothing where none did.

    A held-out reward that fell by more than ``threshold`` paired standard errors; and an image statistic that moved as
    far towards degenerate images, by at least half the spread among the base's prompts, unless a held-out reward rose
    by more than ``threshold`` and thereby says that the images became better.

    Args:
        summary: see ``evaluation.evaluate.summary_of``.
    """
    rewards, held_out = summary["paired"][variant], summary["held_out"]
    if not any((rewards[name]["difference"] or 0.0) > 0 for name in rewards if name not in held_out):
        return []
    moved = {name: in_se(rewards[name]) for name in held_out}
    found = [Alarm(name, rewards[name]["difference"], z) for name, z in moved.items() if z < -threshold]
    if any(z > threshold for z in moved.values()):
        return found
    looks = summary["image_statistics"]
    for name, sign in DEGENERATE.items():
        pair, base = looks["paired"][variant][name], looks["variants"]["base"][name]
        if sign * in_se(pair) > threshold:
            spread = base["se"] * math.sqrt(pair["prompts"])
            if abs(pair["difference"]) > LEAST * spread:
                found.append(Alarm(name, pair["difference"], in_se(pair)))
    return found


def in_se(pair: Mapping[str, Any]) -> float:
    """A difference in standard errors: 0 where there is no number, infinite where there is no spread."""
    difference, se = pair["difference"], pair["se"]
    if difference is None or se is None or difference == 0:
        return 0.0
    return difference / se if se else math.copysign(math.inf, difference)
