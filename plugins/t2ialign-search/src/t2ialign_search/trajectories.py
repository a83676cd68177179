"""What searches along trajectories have in common on the engine of many searches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from t2ialign.problem.problem import Problem
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_reno.engine import Method, Point
from t2ialign_reno.searches import Search


class Result(NamedTuple):
    """The best of a pass, one row per search.

    Attributes:
        latents: clean (B, *latent).
        total: rewards as they are optimised (B,); -inf where no member had a finite one.
        raw: each reward (B,) by name.
        numbers: worth logging, (B,) by name.
    """

    latents: Tensor
    total: Tensor
    raw: dict[str, Tensor]
    numbers: dict[str, Tensor]


class TrajectorySearch(Method):
    """One iteration is a whole pass over the sampler's steps; what is found are clean latents."""

    clean = True

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abstractmethod
    def search(self, conditioning: Conditioning, searches: Sequence[Search], passes: Sequence[int]) -> Result:
        """One pass for every row; its randomness is a function of the search and the number of its pass."""

    def begin(self, searches: Sequence[Search]) -> Point:
        device = self.problem.device
        latents = torch.zeros(len(searches), *self.problem.backend.info.latent_shape, device=device)
        return {"best": latents, "found": torch.zeros(len(searches), device=device)}

    def evaluate(
        self,
        point: Point,
        conditioning: Conditioning,
        searches: Sequence[Search],
        iterations: Sequence[int],
        move: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        found = self.search(conditioning, searches, iterations)
        named = {f"reward/{name}": values for name, values in found.raw.items()}
        values = {"total": found.total, **named, **found.numbers, "latents": found.latents}
        return values, self.problem.decode(found.latents)

    def update(self, point: Point, values: dict[str, Tensor], improved: Tensor) -> tuple[Point, dict[str, Tensor]]:
        improved = improved.to(point["best"].device)
        rows = improved.view(-1, *(1,) * (point["best"].ndim - 1))
        best = torch.where(rows, values["latents"], point["best"])
        return {"best": best, "found": torch.maximum(point["found"], improved.float())}, {}

    def best(self, point: Point, row: int, search: Search, iteration: int) -> tuple[int, Tensor | None]:
        """None before anything was found: the image is then that of plain sampling."""
        return search.seed, point["best"][row].clone() if bool(point["found"][row]) else None
