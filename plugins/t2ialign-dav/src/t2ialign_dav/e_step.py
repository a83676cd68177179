"""The E-step of DAV (arXiv 2510.00502): search trajectories of the posterior pi(tau) exp(r(x_0) / alpha).

    x_T ~ N(0, 1)
    for t = T ... 1, n steps remaining:
        mu, sigma of x_{t-1} given x_t                                  the policy's own transition pi
        s = sigma gamma^n / alpha grad_{x_t} r(x0(x_t))                 guidance, in units of the noise
        x^m = mu + sigma (s + z^m),  m = 1 ... M                        particles of the proposal q
        v^m = r(x0(x^m))                                                value, by the model's estimate of x0
        w^m ~ exp(gamma^n v^m / alpha) pi(x^m | x_t) / q(x^m | x_t)     importance weights
        x_{t-1} = x^m with probability w^m

All trajectories, particles and guidance branches go through the network in one batch. The prediction that scores a
particle is the one that its own transition needs, so a step costs M forwards (and one with gradients).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from t2ialign import Prediction, StepSampler
from t2ialign_dav.model import Draws, Model

Importance = Literal["sum", "mean", "off"]


@dataclass(frozen=True)
class Posterior:
    """The target pi(tau) exp(r / alpha), and how closely particles follow it.

    Attributes:
        alpha: temperature.
        gamma: discount of the value per remaining step.
        guided: shift the proposal along the value's gradient.
        guidance_cap: longest shift, in lengths of the step's noise; None sets no limit.
        importance: log pi / q in the weights: summed over the latent's dimensions (exact), averaged, or left out.
    """

    alpha: float
    gamma: float
    guided: bool
    guidance_cap: float | None
    importance: Importance

    def tilt(self, remaining: int) -> float:
        """gamma^n / alpha: what multiplies a value n steps before the end."""
        return self.gamma**remaining / self.alpha

    def shift(self, gradient: Tensor, std: Tensor, remaining: int) -> Tensor:
        """s / sigma: the capped shift of the proposal in units of its noise, (B, *latent)."""
        shift = std * self.tilt(remaining) * gradient
        if self.guidance_cap is None:
            return shift
        norm = shift.flatten(1).norm(dim=1).view(-1, *(1,) * (shift.ndim - 1))
        return shift * (self.guidance_cap * math.sqrt(shift[0].numel()) / norm).clamp(max=1)

    def log_ratio(self, z: Tensor, shift: Tensor) -> Tensor:
        """log pi / q (B, M) of particles mu + sigma (shift + z), for z (B, M, *latent)."""
        terms = -(z * shift[:, None] + shift[:, None] ** 2 / 2).flatten(2)
        match self.importance:
            case "sum":
                return terms.sum(2)
            case "mean":
                return terms.mean(2)
        return torch.zeros_like(terms[..., 0])


@dataclass(frozen=True)
class Trajectories:
    """What a search of T steps found, row by row.

    Attributes:
        latents: x_T ... x_0 (B, T + 1, *latent), float32.
        targets: what each transition should hit (B, T, *latent): in expectation the chosen particle, with less noise,
            mu + sigma (s + sum_m (w^m - 1 / M) z^m).
        images: (B, 3, H, W).
        diagnostics: name -> (B,).
    """

    latents: Tensor
    targets: Tensor
    images: Tensor
    diagnostics: dict[str, Tensor]

    @property
    def chosen(self) -> Tensor:
        """The particle that each transition led to (B, T, *latent)."""
        return self.latents[:, 1:]

    def map(self, change: Callable[[Tensor], Tensor]) -> Trajectories:
        """Apply a function of rows to every tensor."""
        diagnostics = {name: change(values) for name, values in self.diagnostics.items()}
        return Trajectories(change(self.latents), change(self.targets), change(self.images), diagnostics)


@torch.no_grad()
def search(
    model: Model, sampler: StepSampler, draws: Draws, posterior: Posterior, particles: int, initial: int = 1
) -> Trajectories:
    """Search B trajectories in lock-step.

    Args:
        particles: M.
        initial: initial latents to choose from.
    """
    noise = draws.initial(initial)
    times = sampler.times(model.path).to(noise.device)
    steps = len(times) - 1

    x = model.path.prior(noise, times[0])
    prediction = model.predict(x, times[0])
    choice = choose(model, draws, "initial", prediction.x0, posterior.tilt(steps))
    x, prediction = choice.of(x), Prediction(*map(choice.of, prediction))

    latents, targets, ess, lengths = [x], [], [], []
    for i, (t, s) in enumerate(pairwise(times)):
        last, remaining = i + 1 == steps, steps - i
        mean, std = sampler.transition(model.path, x, prediction, t, s)
        noisy = bool((std > 0).any())  # the last step of many grids is not: one particle is all there is
        shift = torch.zeros_like(mean)
        if posterior.guided and noisy:
            shift = posterior.shift(model.value_gradient(x, t)[0], std, remaining)
        z = draws.noise(i, particles if noisy else 1)
        children = mean[:, None] + std * (shift[:, None] + z)
        estimate = Prediction(children, children) if last else model.predict(children, s)
        ratio = posterior.log_ratio(z, shift)
        choice = choose(model, draws, i, estimate.x0, posterior.tilt(remaining), ratio)
        x, prediction = choice.of(children), Prediction(*map(choice.of, estimate))

        latents.append(x)
        targets.append(choice.mean(children) - std * z.mean(1))  # unweighted noise has mean zero: leave it out
        if noisy:
            ess.append(1 / choice.weights.square().sum(1))
            lengths.append(shift.square().flatten(1).mean(1).sqrt())
    diagnostics = {"ess": torch.stack(ess).mean(0), "shift": torch.stack(lengths).mean(0)}
    return Trajectories(torch.stack(latents, 1), torch.stack(targets, 1), model.images(x), diagnostics)


@dataclass(frozen=True)
class Choice:
    """Weights (B, K) of K candidates of every trajectory, and the index (B,) that was drawn from them."""

    weights: Tensor
    index: Tensor

    def of(self, candidates: Tensor) -> Tensor:
        """The chosen ones of (B, K, *latent): (B, *latent)."""
        return candidates[torch.arange(len(candidates), device=candidates.device), self.index]

    def mean(self, candidates: Tensor) -> Tensor:
        """The weighted mean of (B, K, *latent): (B, *latent)."""
        return torch.einsum("bk,bk...->b...", self.weights, candidates)


def choose(
    model: Model, draws: Draws, step: int | str, x0: Tensor, tilt: float, log_ratio: Tensor | None = None
) -> Choice:
    """Draw one of K candidates by the value of its clean latent (B, K, *latent); a single one is not looked at."""
    if x0.shape[1] == 1:
        return Choice(x0.new_ones(x0.shape[:2]), torch.zeros(len(x0), dtype=torch.long, device=x0.device))
    weights = importance_weights(tilt * model.value(x0), log_ratio)
    return Choice(weights, draws.choose(step, weights))


def importance_weights(log_tilt: Tensor, log_ratio: Tensor | None = None) -> Tensor:
    """Normalised weights (B, K) from gamma^n v / alpha and log pi / q.

    Candidates without a finite value get no weight, unless none of a trajectory has one.
    """
    log_weights = log_tilt if log_ratio is None else log_tilt + log_ratio
    log_weights = log_weights.masked_fill(log_weights.isnan(), -torch.inf)
    hopeless = log_weights.isneginf().all(1, keepdim=True)
    return torch.softmax(log_weights.masked_fill(hopeless, 0.0), dim=1)
