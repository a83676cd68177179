"""How much of a population's scores is signal: an F test over prompts, and the step's gain that follows from it.

Normalised fitness has unit spread whether the reward says anything or not, so a step of fixed length walks at random
under a reward that means nothing. What tells the two apart is whether the prompts agree about the members. With
d_pj = S(+E_p, j) - S(-E_p, j) for pair p and prompt j, and their row means dbar_p,

    V = mean_p dbar_p^2                              expectation: signal + noise / m
    W = sum_pj (d_pj - dbar_p)^2 / (P m (m - 1))     expectation: noise / m
    F = V / W                                        F(P, P (m - 1)) distributed when there is no signal

1 - 1/F is the mean reliability over all split halves of the prompts after Spearman-Brown (Cronbach's alpha with prompts
as items). One step's F has heavy tails, so V and W are averaged over steps, each step counting alike, and the gain
rises from 0 to 1 while the average passes the quantiles of F that chance exceeds at 2 and at 4 standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from torch import Tensor

from t2ialign_eggroll.shaping import prompt_scores

#: Share of the average that is older than one step: it looks back about 1 / (1 - MEMORY) steps.
MEMORY = 0.9
#: Standard deviations of chance at which the gain begins to rise and reaches 1.
BEGIN, END = 2.0, 4.0


class Spread(NamedTuple):
    """Mean squares of one step and what they were made from.

    Attributes:
        between: V, spread of the pairs' (or members') means.
        within: W, what the disagreement of prompts alone would give it.
        total: Q, mean square of all differences: the unit in which steps are averaged.
        f1, f2: degrees of freedom of ``between`` and ``within``.
    """

    between: float
    within: float
    total: float
    f1: int
    f2: int


def spread(samples: Tensor, antithetic: bool) -> Spread:
    """Mean squares of the scores (N, prompts) or (N, prompts, images) that fitness is shaped from.

    With one prompt its images take the place of prompts. Members without a finite score are left out, with their
    partner; so is the unpaired last member of an odd population.

    Raises:
        ValueError: there is only one image.
    """
    if samples.ndim == 3 and samples.shape[1] == 1:
        samples = samples[:, 0]
    if samples.ndim < 2 or samples.shape[1] < 2:
        raise ValueError("the share of signal needs two images or more of every member")
    scores = prompt_scores(samples).double().cpu()
    if antithetic:
        even = scores[: len(scores) // 2 * 2]
        rows = even[::2] - even[1::2]
    else:
        rows = scores
    rows = rows[~rows.isnan().any(1)]
    count, prompts = rows.shape
    f1 = count
    if not antithetic:  # members have a common mean and prompts a common difficulty, which pairs cancel
        f1, rows = count - 1, rows - rows.mean(0)
    f2 = f1 * (prompts - 1)
    if f1 < 1:
        return Spread(0.0, 0.0, 0.0, 0, 0)
    mean = rows.mean(1, keepdim=True)
    between = float(mean.square().sum()) / f1
    within = float((rows - mean).square().sum()) / (f2 * prompts)
    return Spread(between, within, float(rows.square().mean()), f1, f2)


def quantile(deviate: float, f1: float, f2: float) -> float | None:
    """What F(f1, f2) exceeds as often as a standard normal exceeds ``deviate`` (Paulson's approximation).

    None where the approximation has no finite value: too few degrees of freedom to tell.
    """
    a, c = 2 / (9 * f1), 2 / (9 * f2)
    lead = (1 - c) ** 2 - deviate**2 * c
    if lead <= 0:
        return None
    middle, last = (1 - a) * (1 - c), (1 - a) ** 2 - deviate**2 * a
    return ((middle + math.sqrt(middle**2 - lead * last)) / lead) ** 3


@dataclass
class Signal:
    """The running average of V and W, and what follows from it.

    Attributes:
        v, w: exponentially weighted sums of V / Q and W / Q.
        n, n2: sums of the weights and of their squares; n^2 / n2 is the number of steps that the average is worth.
        f1, f2: degrees of freedom of the last step.
    """

    v: float = 0.0
    w: float = 0.0
    n: float = 0.0
    n2: float = 0.0
    f1: int = 0
    f2: int = 0

    def add(self, step: Spread) -> float:
        """Take one step in and return its gain, in [0, 1]."""
        if step.total == 0:
            return 0.0
        self.v = MEMORY * self.v + step.between / step.total
        self.w = MEMORY * self.w + step.within / step.total
        self.n, self.n2 = MEMORY * self.n + 1, MEMORY**2 * self.n2 + 1
        self.f1, self.f2 = step.f1, step.f2
        return self.gain

    @property
    def ratio(self) -> float:
        """The averaged F, 1 on average without signal."""
        return self.v / self.w if self.w > 0 else math.inf if self.v > 0 else 0.0

    @property
    def share(self) -> float:
        """Share of signal in the members' scores, from 0 to 1."""
        return max(0.0, 1 - 1 / self.ratio) if self.ratio > 0 else 0.0

    @property
    def gain(self) -> float:
        if self.n2 == 0:
            return 0.0
        steps = self.n**2 / self.n2
        begin, end = (quantile(z, self.f1 * steps, self.f2 * steps) for z in (BEGIN, END))
        if begin is None or end is None:
            return 0.0
        return min(1.0, max(0.0, (self.ratio - begin) / (end - begin)))

    def state(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, float]) -> Signal:
        return cls(**state)  # type: ignore[arg-type]
