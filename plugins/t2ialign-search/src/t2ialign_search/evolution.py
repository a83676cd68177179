"""EvoSearch (arXiv 2505.17618): evolution of noises and of latents along the denoising trajectory.

With x the input of step s_k, and n_k members, for every generation k of the schedule:

    r = reward of every member's roll-out to the end                the archive keeps the states around every later s_j
    elites = best E of the archive;  parents = winners of tournaments in it
    children at x_T    sqrt(1 - beta^2) parent + beta eps
    children at x_t    the parent's state after the step, brought back to the noise level before it
    x = elites and children, on to s_{k+1}

The best image of all roll-outs, and of the last population, is the result. All searches (B) run in lock-step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from t2ialign_search.walk import Scored, Walk, pick

Reentry = Literal["renoise", "input", "post"]
Phase = Literal["before", "roll", "main"]


@dataclass(frozen=True)
class Evolution:
    """Options of a search.

    Attributes:
        schedule: steps s_0 <= s_1 <= ... before which a generation is chosen.
        sizes: n_0 ... n_K, one more than the schedule has steps.
        elites: E.
        rate: beta.
        share: of the archive that a tournament draws.
        reentry: how members come back into step s_k. "renoise": elites as they entered it, children from behind it, at
            its exact noise level; "input": children are inputs with the step's noise added; "post": the published form,
            which takes the states behind the step for inputs, and its first generation for noise.
    """

    schedule: Sequence[int]
    sizes: Sequence[int]
    elites: int
    rate: float
    share: float = 0.9
    reentry: Reentry = "renoise"


class Draws(Protocol):
    """The randomness of B searches."""

    def initial(self, count: int) -> Tensor:
        """Unit noise (B, count, *latent)."""

    def step(self, phase: Phase, generation: int, i: int, count: int) -> Tensor:
        """Sampler noise (B, count, *latent) of step ``i``."""

    def tournaments(self, generation: int, members: int, drawn: int, count: int) -> Tensor:
        """``count`` draws of ``drawn`` distinct members (B, count, drawn)."""

    def mutation(self, generation: int, count: int) -> Tensor:
        """Unit noise (B, count, *latent)."""


def best_first(fitness: Tensor) -> Tensor:
    """Members (B, N) by falling fitness; ties keep their order, and what has no number comes last."""
    return fitness.nan_to_num(-torch.inf, neginf=-torch.inf).argsort(dim=1, descending=True, stable=True)


def winners(fitness: Tensor, drawn: Tensor) -> Tensor:
    """The fittest of every tournament: (B, N) and members (B, P, m) to (B, P); the first drawn of equals."""
    values = pick(fitness.nan_to_num(-torch.inf, neginf=-torch.inf), drawn.flatten(1)).view(drawn.shape)
    first = values.argsort(dim=2, descending=True, stable=True)[..., :1]
    return drawn.gather(2, first)[..., 0]


def mutated_noise(parents: Tensor, noise: Tensor, rate: float) -> Tensor:
    """Children at x_T: as Gaussian as their parents."""
    return (1 - rate**2) ** 0.5 * parents + rate * noise


def mutated_latents(parents: Tensor, noise: Tensor, std: Tensor | float) -> Tensor:
    """Children at x_t, with the step's noise on top."""
    return parents + std * noise


class Best:
    """The fittest clean latent of every search so far, and its rewards."""

    def __init__(self) -> None:
        self.latents: Tensor | None = None

    def see(self, x0: Tensor, scored: Scored) -> None:
        """Take in members (B, K, *latent)."""
        fitness = scored.total.nan_to_num(-torch.inf, neginf=-torch.inf)
        top = best_first(fitness)[:, :1]
        latents, found = pick(x0, top)[:, 0], fitness.gather(1, top)[:, 0]
        raw = {name: values.gather(1, top)[:, 0] for name, values in scored.raw.items()}
        if self.latents is None:
            self.latents, self.fitness, self.raw = latents, found, raw
            return
        better = found > self.fitness
        shape = (-1, *(1,) * (latents.ndim - 1))
        self.latents = torch.where(better.view(shape), latents, self.latents)
        self.fitness = torch.where(better, found, self.fitness)
        self.raw = {name: torch.where(better, raw[name], old) for name, old in self.raw.items()}


class Archive:
    """States around one scheduled step of all roll-outs so far, the oldest first."""

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def add(self, before: Tensor, after: Tensor) -> None:
        self._inputs.append(before)
        self._outputs.append(after)

    @property
    def inputs(self) -> Tensor:
        return torch.cat(self._inputs, 1)

    @property
    def outputs(self) -> Tensor:
        return torch.cat(self._outputs, 1)


def evolve(walk: Walk, draws: Draws, options: Evolution) -> Best:
    """Search with every row of the walk.

    Where the sampler has no noise, an elite would be rolled out to the same image again: it stays in the archive alone.
    """
    schedule, best = options.schedule, Best()
    archives = [Archive() for _ in schedule]
    fitness: list[Tensor] = []
    x = walk.start(draws.initial(options.sizes[0]))
    x = _walked(walk, draws, x, "before", 0, 0, schedule[0])
    for k, s in enumerate(schedule):
        rolled = x
        for i in range(s, walk.steps):
            before = rolled
            rolled, _ = walk.step(before, i, partial(draws.step, "roll", k, i, x.shape[1]))
            for archive, at in zip(archives[k:], schedule[k:], strict=True):
                if at == i:
                    archive.add(before, rolled)
        scored = walk.score(rolled)
        best.see(rolled, scored)
        fitness.append(scored.total)
        x = offspring(walk, draws, archives[k], torch.cat(fitness, 1), options, k)
        end = schedule[k + 1] if k + 1 < len(schedule) else walk.steps
        x = _walked(walk, draws, x, "main", k, s, end)
    best.see(x, walk.score(x))
    return best


def offspring(walk: Walk, draws: Draws, archive: Archive, fitness: Tensor, options: Evolution, k: int) -> Tensor:
    """The population (B, n_{k+1}, *latent) after generation ``k``, elites first."""
    s, members = options.schedule[k], fitness.shape[1]
    elites = min(options.elites, members, options.sizes[k + 1])
    count = options.sizes[k + 1] - elites
    drawn = draws.tournaments(k, members, max(1, int(options.share * members + 1e-9)), count)
    parents, noise = winners(fitness, drawn), draws.mutation(k, count)
    post = options.reentry == "post"
    pool = archive.outputs if post else archive.inputs
    if k == 0 if post else s == 0:
        children = mutated_noise(pick(pool, parents), noise, options.rate)
    elif options.reentry == "renoise":
        a, b = walk.renoising(s)
        children = a * pick(archive.outputs, parents) + b * noise
    else:
        children = mutated_latents(pick(pool, parents), noise, walk.std[s])
    if not walk.noisy:
        return children
    return torch.cat([pick(pool, best_first(fitness)[:, :elites]), children], 1)


def _walked(walk: Walk, draws: Draws, x: Tensor, phase: Phase, k: int, start: int, end: int) -> Tensor:
    for i in range(start, end):
        x, _ = walk.step(x, i, partial(draws.step, phase, k, i, x.shape[1]))
    return x
