"""Advantage weighted matching, AWM (arXiv 2509.25050): the matching loss of a fresh noising stands for -log p(x0).

x0 ~ policy, any sampler;   x_t = alpha x0 + sigma eps;   m = |v_theta - (eps - x0)|^2
log p   = -m, -t m, -t^2 m, or a power of m that bounds the pull of bad images ("huber", "ghuber")
ratio   = exp(log p_theta - log p_behaviour)              of a noising, or of an image: means over its noisings
L = mean of max(-A ratio, -A clamp(ratio)) + kl |v_theta - v_base|^2 + slow_kl |v_theta - v_slow|^2
slow <- d slow + (1 - d) theta,   d = min(updates / 1000, d_max)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from t2ialign import Prediction
from t2ialign_rl.advantages import clipped, clipped_loss
from t2ialign_rl.config import AwmConfig
from t2ialign_rl.forward import flow_time, squared_error, stratified
from t2ialign_rl.forward_process import ForwardProcess, Noised, distance, predicted

Weighting = Literal["uniform", "t", "t2", "huber", "ghuber"]
PullForm = Literal["uniform", "elbo"]
#: Inside roots, so that their gradient is finite at 0.
EPS = 1e-10


def log_prob(error: Tensor, t: Tensor, weighting: Weighting, power: float = 0.25) -> Tensor:
    """The surrogate (n,), 0 for a perfect match; in float64, or 1e-10 would be lost.

    Args:
        error: mean squared error m of the direction (n,).
        t: flow time in [0, 1] (n,).
        power: of "ghuber".
    """
    m, t = error.double(), t.double()
    match weighting:
        case "t":
            return -t * m
        case "t2":
            return -t.square() * m
        case "huber":
            return -t * ((m + EPS).sqrt() - EPS**0.5)
        case "ghuber":
            return -t * ((m + EPS) ** power - EPS**power) / power
    return -m


def scaled_advantages(advantages: Tensor, clip: float, largest: float) -> Tensor:
    """Clipped to +-clip, then brought to +-largest (n,)."""
    return clipped(advantages, clip) / clip * largest


def elbo_std(t: Tensor) -> Tensor:
    """0.7 sqrt(t / (1 - t)) (n,), t at most 0.99 in the divisor."""
    return 0.7 * (t / (1 - t.clamp(0, 0.99))).sqrt()


def weighed(distances: Tensor, t: Tensor, form: PullForm) -> Tensor:
    """Squared distances (n,) at flow times t (n,): as they are, or over 2 std^2 as in an evidence lower bound."""
    return distances if form == "uniform" else distances / (2 * elbo_std(t).square()).to(distances)


def image_means(values: Tensor, times: int) -> Tensor:
    """Means (n / times,) of rows (n,) whose times of an image follow one another."""
    return values.view(-1, times).mean(1)


def slow_decay(updates: int, largest: float) -> float:
    """d after ``updates`` updates."""
    return min(largest, 0.001 * updates)


class Awm(ForwardProcess):
    """The present policy draws; the loss is on the direction."""

    Config = AwmConfig
    losses_reported = ("policy", "kl", "slow_kl", "ratio")

    def decay(self) -> float:
        return slow_decay(self.updates, self.config.slow_decay)

    def whole_images(self) -> bool:
        return self.config.ratio == "image"

    def positions(self, source: torch.Generator) -> Tensor:
        config = self.config
        u = torch.rand(config.times, generator=source)
        return stratified(u, config.grid, config.timestep_fraction, config.first)

    def losses(self, rows: Noised, behaviour: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        config, adapter = self.config, self.problem.adapter
        path, time = rows.denoiser.path, flow_time(rows.denoiser.path, rows.t)
        target = path.direction(Prediction(rows.x0, rows.noise))

        def surrogate(prediction: Prediction) -> Tensor:
            error = squared_error(path.direction(prediction), target)
            return log_prob(error, time, config.weighting, config.power)

        def own(values: Tensor) -> Tensor:
            return image_means(values, config.times if self.whole_images() else 1)

        # The others come before theta, whose graph a swap would break.
        before = surrogate(predicted(rows, adapter.swapped(behaviour))) if behaviour else None
        base = predicted(rows, adapter.disabled()) if config.kl else None
        slow = predicted(rows, adapter.swapped(self.old)) if config.slow_kl else None
        prediction = rows.denoiser(rows.x, rows.t)
        now = surrogate(prediction)
        ratio = torch.exp(own(now - (now.detach() if before is None else before)))
        advantages = scaled_advantages(own(rows.advantages), config.advantage_clip, config.advantage_max)
        policy = clipped_loss(advantages, ratio, config.clip)
        kl = own(weighed(distance(path, prediction, base), time, config.kl_form))
        slow_kl = own(weighed(distance(path, prediction, slow), time, config.slow_kl_form))
        total = policy + config.kl * kl + config.slow_kl * slow_kl
        return {"total": total, "policy": policy, "kl": kl, "slow_kl": slow_kl, "ratio": ratio}
