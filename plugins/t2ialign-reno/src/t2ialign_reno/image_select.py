"""Best of n: as many noises as there are iterations, and the image that the rewards like most. The baseline of ReNO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t2ialign import seeding
from t2ialign.problem.problem import Problem
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_reno.config import ImageSelectConfig
from t2ialign_reno.engine import Method, Point
from t2ialign_reno.noise_search import NoiseSearch
from t2ialign_reno.searches import Search


class FreshNoise(Method):
    """A new seed in every iteration, the search's own first; there is nothing to remember but which was best."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def seed(self, search: Search, iteration: int) -> int:
        if iteration == 0:
            return search.seed
        return seeding.derive(self.problem.spec.run.seed, "image-select", search.item.prompt, search.seed, iteration)

    def begin(self, searches: Sequence[Search]) -> Point:
        return {}

    def evaluate(
        self,
        point: Point,
        conditioning: Conditioning,
        searches: Sequence[Search],
        iterations: Sequence[int],
        move: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        seeds = [self.seed(search, iteration) for search, iteration in zip(searches, iterations, strict=True)]
        images = self.problem.generate(conditioning, seeds)
        with torch.no_grad():
            raw = self.problem.rewards.score(images, conditioning.prompts, optimised_only=True)
            total = self.problem.rewards.combine(raw)
        return {"total": total, **{f"reward/{name}": values for name, values in raw.items()}}, images

    def update(self, point: Point, values: dict[str, Tensor], improved: Tensor) -> tuple[Point, dict[str, Tensor]]:
        return point, {}

    def best(self, point: Point, row: int, search: Search, iteration: int) -> tuple[int, Tensor | None]:
        seed = self.seed(search, iteration)
        has_noise = self.problem.backend.info.family == "diffusion"
        return seed, self.problem.backend.noise([seed])[0] if has_noise else None


class ImageSelect(NoiseSearch):
    """Best of n noises; for any model and reward."""

    Config = ImageSelectConfig

    def method(self) -> FreshNoise:
        return FreshNoise(self.problem)
