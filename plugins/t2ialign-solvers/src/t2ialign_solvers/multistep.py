"""Multistep solvers: one evaluation an interval, and earlier ones reused."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from t2ialign_solvers.config import IpndmConfig
from t2ialign_solvers.ode import Ode, OdeSampler, adams_bashforth


class Ipndm(OdeSampler):
    """Adams-Bashforth over v with fixed-step coefficients (iPNDM, arXiv 2204.13902)."""

    Config = IpndmConfig

    def integrate(self, ode: Ode, y: Tensor, knots: Tensor) -> Tensor:
        history: list[Tensor] = []
        for v, w in pairwise(knots):
            history = [*history[-3:], ode(y, v)]
            y = y + (w - v) * adams_bashforth(history, self.config.order)
        return y


class DpmSolverPlusPlus2M(OdeSampler):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): x0 extrapolated linearly in lambda = log(alpha / sigma).

    With y = x / scale and a = alpha / scale: y' = (w / v) y + (a(w) - a(v) w / v) D.
    """

    like = "DPMSolverMultistepScheduler"

    def integrate(self, ode: Ode, y: Tensor, knots: Tensor) -> Tensor:
        times = ode.path.time(knots)
        a = ode.path.alpha(times) / ode.path.scale(times)
        log_snr = (a / knots).log()
        previous: Tensor | None = None
        for i, (v, w) in enumerate(pairwise(knots)):
            d = ode(y, v)
            x0 = y - v * d
            estimate = x0
            # From pure noise (alpha = 0) lambda is infinite and the history carries no weight.
            if previous is not None and log_snr[i - 1].isfinite():
                ratio = (log_snr[i + 1] - log_snr[i]) / (log_snr[i] - log_snr[i - 1])
                estimate = x0 + ratio / 2 * (x0 - previous)
            y = w / v * y + (a[i + 1] - a[i] * w / v) * estimate
            previous = x0
        return y
