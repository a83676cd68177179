"""Zero-order noise search (arXiv 2501.09732): step to the best of N noises around a pivot, without gradients.

With pivot x, u = x / |x| and v Gaussian, neighbours lie on the pivot's sphere at a fixed angle from it:

    w = (v - (v . u) u) / |v - (v . u) u|,      y = |x| (tau u + sqrt(1 - tau^2) w),      cos(x, y) = tau

A round looks at N neighbours, one image at a time for each of many searches; then the pivot moves by one of three
rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from t2ialign import seeding
from t2ialign.problem.problem import Problem
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_reno.engine import Method, Point
from t2ialign_reno.noise_search import NoiseSearch
from t2ialign_reno.searches import Search
from t2ialign_search.config import ZeroOrderConfig

Rule = Literal["keep", "paper", "upstream"]


def neighbours(pivots: Tensor, directions: Tensor, cosine: float) -> Tensor:
    """y (n, *latent) of pivots (n, *latent) and Gaussian directions of the same shape, in float64 until the end."""
    x, v = pivots.double().flatten(1), directions.double().flatten(1)
    norm = x.norm(dim=1, keepdim=True)
    u = x / norm.clamp(min=1e-12)
    w = v - (v * u).sum(1, keepdim=True) * u
    w = w / w.norm(dim=1, keepdim=True)
    y = norm * (cosine * u + (1 - cosine**2) ** 0.5 * w)
    return y.view_as(pivots).to(pivots.dtype)


def next_pivots(
    rule: Rule, pivots: Tensor, scores: Tensor, candidates: Tensor, best: Tensor, fresh: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """After a round: new pivots (n, *latent), their scores (n,), and whether these are known (n,).

    "keep" stays where no neighbour is better; "paper" goes to the best neighbour in any case; "upstream" starts from
    new noise where none is better.

    Args:
        scores: of the pivots (n,).
        candidates: each search's best neighbour (n, *latent), and ``best`` its score (n,).
        fresh: new noise (n, *latent), for "upstream".
    """
    better = best > scores
    moves = torch.ones_like(better) if rule == "paper" else better
    shape = (-1, *(1,) * (pivots.ndim - 1))
    stay = pivots if rule != "upstream" or fresh is None else fresh
    known = better if rule == "upstream" else torch.ones_like(better)
    return torch.where(moves.view(shape), candidates, stay), torch.where(moves, best, scores), known


class ZeroOrder(Method):
    """One neighbour of every search's pivot at a time.

    A point is "pivot" with its "pivot_score", the round's best "candidate" with its "candidate_score", "looked", the
    neighbours of this round so far (-1: the pivot itself is to be scored), and "best" of all.
    """

    def __init__(self, problem: Problem, config: ZeroOrderConfig) -> None:
        self.problem, self.config = problem, config

    def begin(self, searches: Sequence[Search]) -> Point:
        noise = self.problem.backend.noise([search.seed for search in searches])
        lowest = torch.full((len(noise),), -torch.inf, device=noise.device)
        looked = torch.full_like(lowest, -1)
        return {
            "pivot": noise,
            "pivot_score": lowest,
            "candidate": noise,
            "candidate_score": lowest.clone(),
            "looked": looked,
            "best": noise.clone(),
        }

    def evaluate(
        self,
        point: Point,
        conditioning: Conditioning,
        searches: Sequence[Search],
        iterations: Sequence[int],
        move: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        pivot = point["pivot"]
        around = neighbours(pivot, self._normal("zero-order", searches, iterations), self.config.cosine)
        is_pivot = (point["looked"] < 0).view(-1, *(1,) * (pivot.ndim - 1))
        latents = torch.where(is_pivot, pivot, around)
        images = self.problem.generate(conditioning, [search.seed for search in searches], latents)
        with torch.no_grad():
            raw = self.problem.rewards.score(images, conditioning.prompts, optimised_only=True)
            total = self.problem.rewards.combine(raw)
        values = {"total": total, **{f"reward/{name}": scores for name, scores in raw.items()}, "latents": latents}
        if self.config.pivot_rule == "upstream":
            values["fresh"] = self._normal("zero-order-pivot", searches, iterations)
        return values, images

    def update(self, point: Point, values: dict[str, Tensor], improved: Tensor) -> tuple[Point, dict[str, Tensor]]:
        latents, score = values["latents"], values["total"].to(point["pivot"].device)
        score = score.nan_to_num(-torch.inf, neginf=-torch.inf)
        rows = (-1, *(1,) * (latents.ndim - 1))
        is_pivot = point["looked"] < 0
        better = ~is_pivot & ((score > point["candidate_score"]) | (point["looked"] == 0))
        pivot_score = torch.where(is_pivot, score, point["pivot_score"])
        candidate = torch.where(better.view(rows), latents, point["candidate"])
        candidate_score = torch.where(better, score, point["candidate_score"])
        looked = point["looked"] + 1
        over = looked == self.config.neighbours
        pivots, scores, known = next_pivots(
            self.config.pivot_rule, point["pivot"], pivot_score, candidate, candidate_score, values.get("fresh")
        )
        moved = over & (pivots != point["pivot"]).flatten(1).any(1)
        return {
            "pivot": torch.where(over.view(rows), pivots, point["pivot"]),
            "pivot_score": torch.where(over, scores, pivot_score),
            "candidate": candidate,
            "candidate_score": candidate_score,
            "looked": torch.where(over, known.float() - 1, looked),
            "best": torch.where(improved.to(latents.device).view(rows), latents, point["best"]),
        }, {"moved": moved.float()}

    def best(self, point: Point, row: int, search: Search, iteration: int) -> tuple[int, Tensor | None]:
        return search.seed, point["best"][row].clone()

    def _normal(self, purpose: str, searches: Sequence[Search], iterations: Sequence[int]) -> Tensor:
        run, info = self.problem.spec.run.seed, self.problem.backend.info
        seeds = [
            seeding.derive(run, purpose, search.item.prompt, search.seed, iteration)
            for search, iteration in zip(searches, iterations, strict=True)
        ]
        return seeding.normal(seeds, info.latent_shape, self.problem.device)


class ZeroOrderSearch(NoiseSearch):
    """Steps to better neighbours of the initial noise; for any model with noise, any sampler and any reward."""

    Config = ZeroOrderConfig

    def method(self) -> ZeroOrder:
        return ZeroOrder(self.problem, self.config)
