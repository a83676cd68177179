"""What all ODE solvers share: the probability-flow ODE of a denoiser, and the way along a schedule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from t2ialign import Denoiser, Prediction, Sampler, SamplerConfig
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_solvers import schedules
from t2ialign_solvers.config import OdeConfig


class Ode:
    """dy/dv = d(y, v) in the denoiser's path coordinates (see ``t2ialign.tensors.paths``): y = x0 at v = 0.

    Args:
        denoiser: bound to B rows of conditioning.
        free_start: the first direction is guessed without the network.
    """

    def __init__(self, denoiser: Denoiser, free_start: bool = False) -> None:
        self.denoiser = denoiser
        self.path = denoiser.path
        self._free = free_start
        self._repeated: dict[int, Denoiser] = {}

    def __call__(self, y: Tensor, v: Tensor) -> Tensor:
        """The direction at y (B, ...) and v (one for all rows)."""
        if self._free:
            self._free = False
            return self.path.free_direction(y, v)
        return self.path.direction(self.predict(y, v))

    def predict(self, y: Tensor, v: Tensor) -> Prediction:
        """(x0, eps) at y (B, ...) and v (one for all rows)."""
        t = self.path.time(v)
        return self.denoiser(self.path.scale(t) * y, t)

    def probe(self, y: Tensor, v: Tensor) -> Tensor:
        """Directions at K points per row, in one network call.

        Args:
            y: (B, K, ...).
            v: (B, K).

        Returns:
            (B, K, ...).
        """
        batch, count = v.shape
        if count not in self._repeated:
            index = torch.arange(batch).repeat_interleave(count)
            self._repeated[count] = self.denoiser.rows(index)
        t = self.path.time(v.flatten())
        points = y.flatten(0, 1)
        self.denoiser.evaluations += count
        return self.path.direction(self._repeated[count](column(self.path.scale(t), points) * points, t)).unflatten(
            0, (batch, count)
        )


class OdeSampler(Sampler):
    """A solver of the probability-flow ODE; subclasses write ``integrate``.

    Attributes:
        like: the scheduler of diffusers that takes the same steps on the checkpoint's own grid, if there is one.
    """

    Config: ClassVar[type[SamplerConfig]] = OdeConfig
    like: ClassVar[str] = ""

    def scheduler(self) -> tuple[str, dict[str, Any]] | None:
        native = self.config.schedule == "native" and not self.config.afs
        return (self.like, {}) if self.like and native else None

    def sample(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        path = denoiser.path
        knots = self.knots(path)
        to_zero = knots[-1].item() == 0
        knots = knots.to(noise.dtype)  # on the CPU, where scalar arithmetic makes no GPU wait
        start = path.time(knots[0])
        y = path.prior(noise, start) / path.scale(start)
        ode = Ode(denoiser, self.config.afs)
        if not to_zero:
            return self.integrate(ode, y, knots)
        # Euler's step to v = 0 gives the predicted x0; higher orders would need a slope at 0, which no model has.
        y = self.integrate(ode, y, knots[:-1])
        return y - knots[-2] * ode(y, knots[-2])

    def knots(self, path: DiffusionPath) -> Tensor:
        """Descending values of v, on the CPU."""
        return schedules.knots(self.config, path)

    @abstractmethod
    def integrate(self, ode: Ode, y: Tensor, knots: Tensor) -> Tensor:
        """From y at knots[0] to y at knots[-1]; all knots are positive."""


def column(values: Tensor, like: Tensor) -> Tensor:
    """Trailing axes of size 1, so that values of the leading axes multiply ``like``."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - values.ndim))


def adams_bashforth(history: Sequence[Tensor], order: int) -> Tensor:
    """Combination of the newest directions with fixed-step coefficients (iPNDM, arXiv 2204.13902).

    Args:
        history: directions so far, newest last.
        order: at most 4; lower while the history is short.
    """
    coefficients = _ADAMS_BASHFORTH[min(order, len(history))]
    return sum(
        (c * d for c, d in zip(coefficients[1:], reversed(history[:-1]), strict=False)), coefficients[0] * history[-1]
    )


_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
