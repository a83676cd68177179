"""ReNO as an optimizer: the noise optimisation of arXiv 2406.04312 for many images at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t2ialign import RewardError
from t2ialign.problem.mix import RewardMix
from t2ialign.problem.problem import Problem
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_reno.config import RenoConfig
from t2ialign_reno.engine import Method, Point
from t2ialign_reno.noise_optimization import (
    Ascent,
    ascend,
    keep_best,
    objective_gradient,
    scaled_learning_rate,
    start,
)
from t2ialign_reno.noise_search import NoiseSearch
from t2ialign_reno.objective import norms, reward_gradient
from t2ialign_reno.searches import Search


class NoiseAscent(Method):
    """Gradient ascent on the noise; a point is that of ``noise_optimization``."""

    def __init__(self, problem: Problem, config: RenoConfig) -> None:
        self.problem = problem
        size = torch.Size(problem.backend.info.latent_shape).numel()
        rate = config.learning_rate
        self.ascent = Ascent(
            solver=config.solver,
            learning_rate=scaled_learning_rate(rate, size) if config.scale_learning_rate else rate,
            momentum=config.momentum,
            max_gradient_norm=config.max_gradient_norm,
            regularisation=config.regularisation,
        )
        mix = problem.rewards
        self.rewards = [RewardMix([part], mix.drop_nonfinite) for part in mix.rewards if part.mix.weight]

    def begin(self, searches: Sequence[Search]) -> Point:
        return start(self.problem.backend.noise([search.seed for search in searches]), self.ascent.solver)

    def evaluate(
        self,
        point: Point,
        conditioning: Conditioning,
        searches: Sequence[Search],
        iterations: Sequence[int],
        move: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        latents, seeds, prompts = point["latents"], [search.seed for search in searches], conditioning.prompts
        if not move:
            images = self.problem.generate(conditioning, seeds, latents)
            with torch.no_grad():
                raw = self.problem.rewards.score(images, prompts, optimised_only=True)
                return {"total": self.problem.rewards.combine(raw), **_named(raw)}, images
        found = reward_gradient(
            lambda noise: self.problem.render(conditioning, seeds, noise), self.rewards, latents, prompts
        )
        if not self.problem.rewards.drop_nonfinite:
            _check(found.gradient, found.images, prompts)
        return {"total": found.total, "gradient": found.gradient, **_named(found.raw)}, found.images

    def update(self, point: Point, values: dict[str, Tensor], improved: Tensor) -> tuple[Point, dict[str, Tensor]]:
        point = keep_best(point, improved)
        numbers = {"noise_norm": norms(point["latents"])}
        if "gradient" in values:
            gradient = objective_gradient(point, values["gradient"], self.ascent)
            numbers["gradient_norm"] = norms(gradient)
            point = ascend(point, gradient, self.ascent)
        return point, numbers

    def best(self, point: Point, row: int, search: Search, iteration: int) -> tuple[int, Tensor | None]:
        return search.seed, point["best_latents"][row].clone()


def _named(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"reward/{name}": values for name, values in raw.items()}


def _check(gradient: Tensor, images: Tensor, prompts: Sequence[str]) -> None:
    finite = gradient.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise RewardError(
            f"the reward's gradient is not finite for prompt '{prompts[row]}'; look at the saved image, use a wider"
            " dtype, or set run.nonfinite = 'drop' to go on from that search's best noise",
            image=images[row],
        )


class Reno(NoiseSearch):
    """Gradient ascent on the initial noise of a one-step model; delivers images."""

    Config = RenoConfig

    def method(self) -> NoiseAscent:
        return NoiseAscent(self.problem, self.config)
