"""Images drawn with a table each, and their rewards; ranks share the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign.problem.problem import Problem
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_solvers.epd import Epd
from t2ialign_solvers.table import SolverTable


@dataclass(frozen=True)
class Scored:
    """The rewards of a batch, the same on every rank, and a few of its images, this rank's.

    Attributes:
        rewards: name -> raw scores (B,), on the CPU.
    """

    rewards: dict[str, Tensor]
    images: Tensor


def sampler_of(problem: Problem) -> Epd:
    """The spec's sampler, which the capability "table" promises to be ``epd``."""
    assert isinstance(problem.sampler, Epd)
    return problem.sampler


@torch.no_grad()
def rollout(problem: Problem, tables: SolverTable, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
    """Images (B, 3, H, W) in micro-batches; all probes of an interval are one network call.

    Args:
        tables: (B, N, K), or one table (N, K) for all images.
    """
    sampler = sampler_of(problem)
    if tables.positions.ndim == 2:
        return problem.rollout(conditioning, seeds, sampler.with_table(tables)).images
    return problem.rollout(conditioning, seeds, lambda rows: sampler.with_table(tables.rows(rows))).images


@torch.no_grad()
def scored(
    problem: Problem,
    tables: SolverTable,
    conditioning: Conditioning,
    seeds: Sequence[int],
    *,
    references: dict[str, Tensor] | None = None,
    optimised_only: bool = False,
) -> Scored:
    """Draw and score B images, this rank a B / size of them.

    Args:
        references: of all B rows, where they are already there; else they are drawn, once for equal rows.
    """
    world, count = problem.world, len(seeds)
    mine = world.mine(count)
    own = tables.rows(torch.tensor(mine)) if tables.positions.ndim == 3 else tables
    part, own_seeds = conditioning[mine], [seeds[row] for row in mine]
    images = rollout(problem, own, part, own_seeds)
    targets = (
        draw_references(problem, part, own_seeds)
        if references is None
        else {name: values[mine] for name, values in references.items()}
    )
    rewards = problem.rewards.score(
        images, part.prompts, optimised_only=optimised_only, micro_batch=problem.micro_batch, references=targets
    )
    return Scored({name: world.collect(values, count).cpu() for name, values in rewards.items()}, images)


def draw_references(problem: Problem, conditioning: Conditioning, seeds: Sequence[int]) -> dict[str, Tensor]:
    """References of the optimised rewards, one row per image; images of one prompt and noise share theirs."""
    if not problem.rewards.references:
        return {}
    first: dict[tuple[str, int], int] = {}
    keys = list(zip(conditioning.prompts, seeds, strict=True))
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    place = {key: position for position, key in enumerate(first)}
    index = torch.tensor([place[key] for key in keys])
    rows = list(first.values())
    drawn = problem.references(conditioning[rows], [seeds[row] for row in rows], optimised_only=True)
    return {name: images[index.to(images.device)] for name, images in drawn.items()}
