"""Images drawn with a table each, and their rewards; ranks share the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign.problem.problem import Problem
from t2ialign.tensors.batching import split, with_oom_retry
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

    def part(rows: slice) -> Tensor:
        own = tables.rows(rows) if tables.positions.ndim == 3 else tables
        return problem.backend.generate(conditioning[rows], seeds[rows], sampler.with_table(own))

    def run(micro_batch: int) -> Tensor:
        return torch.cat([part(rows) for rows in split(len(seeds), micro_batch)])

    images, problem.micro_batch = with_oom_retry(run, problem.micro_batch)
    return images


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
    share = -(-count // world.size)
    mine = slice(min(world.rank * share, count), min((world.rank + 1) * share, count))
    size = mine.stop - mine.start
    rewards = {name: torch.empty(0) for name in _names(problem, optimised_only)}
    images = torch.empty(0)
    if size:
        own = tables.rows(mine) if tables.positions.ndim == 3 else tables
        images = rollout(problem, own, conditioning[mine], seeds[mine])
        targets = (
            draw_references(problem, conditioning[mine], seeds[mine])
            if references is None
            else {name: values[mine] for name, values in references.items()}
        )
        rewards = problem.rewards.score(
            images,
            conditioning.prompts[mine],
            optimised_only=optimised_only,
            micro_batch=problem.micro_batch,
            references=targets,
        )
    padded = {
        name: torch.nn.functional.pad(values.to(problem.device), (0, share - size), value=torch.nan)
        for name, values in rewards.items()
    }
    return Scored({name: world.gather(values)[:count].cpu() for name, values in padded.items()}, images)


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


def _names(problem: Problem, optimised_only: bool) -> list[str]:
    return problem.rewards.optimised if optimised_only else problem.rewards.names
