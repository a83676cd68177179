"""Feynman-Kac steering (arXiv 2501.06848): potentials, weights and resampling of k particles, in log space.

Potentials G_i multiply to exp(lambda r(x0)) along a path. With r the reward of the clean image predicted at an event,
s a particle's state and P the product of its lineage's potentials:

    difference   log G = lambda (r - s),  s' = r          max      s' = max(r, s),  log G = lambda s'
    sum          s' = r + s,  log G = lambda s'           reward   s' = r,          log G = lambda r

and at the last event, for all but the first, log G = lambda r - log P. Everything is a tensor (B, k): rows never mix.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Potential = Literal["difference", "max", "sum", "reward"]
Resampling = Literal["systematic", "stratified", "multinomial"]
#: Largest weight of the published code, which works with weights and not with their logarithms.
PUBLISHED_CAP = 1e10


class Particles(NamedTuple):
    """What k particles remember, each (B, k).

    Attributes:
        state: s.
        log_weights: log W since the last resampling.
        log_product: log P.
    """

    state: Tensor
    log_weights: Tensor
    log_product: Tensor

    @classmethod
    def start(cls, shape: tuple[int, int], state: float, device: torch.device | str = "cpu") -> Particles:
        """Equal particles; ``state`` is the least reward that is expected."""
        zeros = torch.zeros(shape, device=device)
        return cls(zeros + state, zeros, zeros)

    def gather(self, index: Tensor) -> Particles:
        """After resampling with ``index`` (B, k): states and products of the chosen ones, equal weights."""
        state, log_product = self.state.gather(1, index), self.log_product.gather(1, index)
        return Particles(state, torch.zeros_like(state), log_product)


def starting_state(potential: Potential) -> float:
    """Leaves no reward out: "max" would otherwise take all rewards below its start for equal."""
    return -torch.inf if potential == "max" else 0.0


def events(steps: int, first: int, last: int, every: int) -> list[int]:
    """Steps after which particles may be resampled: first, first + every, ... up to ``last``, and the last step."""
    return sorted({i for i in range(first, last + 1, every) if 0 <= i < steps} | {steps - 1})


def weigh(
    particles: Particles,
    rewards: Tensor,
    potential: Potential,
    lmbda: float,
    last: bool = False,
    published: bool = False,
) -> tuple[Particles, Tensor]:
    """Take in the rewards (B, k) of one event.

    A particle without a finite reward gets no weight and keeps its state; a row without any finite one stays as it was.

    Args:
        last: the event after the last step.
        published: as the published code does: only this event's potential counts, capped, and the last one of "max" and
            "sum" is of the state and not of the reward. A product is then complete only after ``resampled``.

    Returns:
        The particles, and log G (B, k).
    """
    state, log_weights, log_product = particles
    finite = rewards.isfinite()
    rewards = torch.where(finite, rewards, 0.0)
    match potential:
        case "difference":
            after, log_g = rewards, lmbda * (rewards - state)
        case "max":
            after = torch.maximum(rewards, state)
            log_g = lmbda * after
        case "sum":
            after = rewards + state
            log_g = lmbda * after
        case "reward":
            after, log_g = rewards, lmbda * rewards
    if last and potential != "difference":
        log_g = lmbda * (after if published else rewards) - log_product
    after = torch.where(finite, after, state)
    if published:
        capped = torch.where(finite, log_g.exp(), 0.0).clamp(0, PUBLISHED_CAP).log()
        return Particles(after, capped, log_product), capped
    log_product = log_product + torch.where(finite, log_g, 0.0)
    log_g = log_g.masked_fill(~finite & finite.any(1, keepdim=True), -torch.inf)
    log_g = log_g.masked_fill(~finite.any(1, keepdim=True), 0.0)
    return Particles(after, log_weights + log_g, log_product), log_g


def weights(log_weights: Tensor) -> Tensor:
    """Probabilities (B, k); equal ones where no particle has any weight."""
    log_weights = log_weights.masked_fill(log_weights.isnan(), -torch.inf)
    hopeless = log_weights.isneginf().all(1, keepdim=True)
    return torch.softmax(log_weights.masked_fill(hopeless, 0.0), dim=1)


def effective_size(probabilities: Tensor) -> Tensor:
    """1 / sum p^2 (B,), from 1 to k: how many particles carry the weight."""
    return 1 / probabilities.square().sum(1)


def draw(probabilities: Tensor, uniforms: Tensor, how: Resampling) -> Tensor:
    """Indices (B, k) by inversion of the distributions (B, k); what has no weight is never drawn.

    Args:
        uniforms: in [0, 1), (B, k), of which "systematic" uses the first of every row.
    """
    count = probabilities.shape[1]
    slots = torch.arange(count, device=probabilities.device, dtype=torch.float64)
    match how:
        case "systematic":
            points = (slots + uniforms[:, :1].double()) / count
        case "stratified":
            points = (slots + uniforms.double()) / count
        case "multinomial":
            points = uniforms.double()
    below = probabilities.double().cumsum(1)
    below[:, -1] = 1.0
    return torch.searchsorted(below, points.contiguous(), right=True).clamp(max=count - 1)


def resampled(particles: Particles, log_g: Tensor, index: Tensor, where: Tensor, published: bool = False) -> Particles:
    """The particles after an event: rows ``where`` (B,) is set are resampled with ``index`` (B, k)."""
    if published:  # keeps no weights, and takes a potential into the product only with a resampling
        product = particles.log_product + torch.where(where[:, None], log_g, 0.0)
        particles = Particles(particles.state, torch.zeros_like(product), product)
    chosen = particles.gather(index)
    pairs = zip(chosen, particles, strict=True)
    return Particles(*(torch.where(where[:, None], new, old) for new, old in pairs))
