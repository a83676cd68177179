"""One-interval solvers: each step uses only the state it starts from."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from t2ialign_solvers.config import Dpm2Config, TwoStageConfig
from t2ialign_solvers.ode import Ode, OdeSampler


class Euler(OdeSampler):
    """y + (w - v) d: first order, the same as DDIM with eta = 0 (arXiv 2010.02502)."""

    like = "EulerDiscreteScheduler"

    def integrate(self, ode: Ode, y: Tensor, knots: Tensor) -> Tensor:
        for v, w in pairwise(knots):
            y = y + (w - v) * ode(y, v)
        return y


class Heun(OdeSampler):
    """The mean of the directions at both ends: second order (EDM, arXiv 2206.00364, algorithm 1)."""

    Config = TwoStageConfig
    like = "HeunDiscreteScheduler"

    def integrate(self, ode: Ode, y: Tensor, knots: Tensor) -> Tensor:
        for v, w in pairwise(knots):
            d = ode(y, v)
            end = ode(y + (w - v) * d, w)
            y = y + (w - v) * (d + end) / 2
        return y


class Dpm2(OdeSampler):
    """The direction at a geometric midpoint m = w^r v^(1-r): second order (DPM-Solver-2, arXiv 2206.00927)."""

    Config = Dpm2Config

    def integrate(self, ode: Ode, y: Tensor, knots: Tensor) -> Tensor:
        r = self.config.midpoint
        for v, w in pairwise(knots):
            m = w**r * v ** (1 - r)
            d = ode(y, v)
            middle = ode(y + (m - v) * d, m)
            y = y + (w - v) * (middle / (2 * r) + (1 - 1 / (2 * r)) * d)
        return y
