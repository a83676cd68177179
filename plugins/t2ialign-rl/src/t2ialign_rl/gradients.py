"""What methods share that follow gradients of rewards: through a sampler's last calls, and through the rewards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from t2ialign import Denoiser, Prediction, RewardError, StepResult, UsageError
from t2ialign.problem.mix import RewardMix
from t2ialign.problem.problem import Problem
from t2ialign_rl.forward import along
from t2ialign_rl.forward_process import distance
from t2ialign_rl.loop import SHOWN, Online


class LastCalls(Denoiser):
    """A denoiser some of whose calls are constants: the direction that they give has no gradient.

    Attributes:
        last: time of the latest call.
        drift: squared distance (n,) to the base model's direction, summed over the calls with a gradient.
    """

    def __init__(self, inner: Denoiser, constant: Collection[int], base: Callable[[], Any] | None = None) -> None:
        """
        Args:
            inner: bound to n rows.
            constant: numbers of the calls without a gradient, from 0.
            base: context in which ``inner`` is the base model; None leaves ``drift`` out.
        """
        super().__init__(inner.path, inner.conditioning)
        self.inner, self.constant, self.base = inner, constant, base
        self.last: Tensor | None = None
        self.drift: Tensor | float = 0.0

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        self.last = t
        if self.evaluations - 1 in self.constant:
            with torch.no_grad():
                prediction = self.inner.predict(x, t)
            if not x.requires_grad:
                return prediction
            return along(self.path, x, t, self.path.direction(prediction))
        if self.base and torch.is_grad_enabled():
            with torch.no_grad(), self.base():
                base = self.inner.predict(x, t)
            prediction = self.inner.predict(x, t)
            self.drift = self.drift + distance(self.path, prediction, base)
            return prediction
        return self.inner.predict(x, t)

    def rows(self, index: Tensor | Sequence[int]) -> Denoiser:
        raise UsageError("gradients through a sampler need one that calls the network on whole batches, as 'ddim' does")


def reward_loss(reward: Tensor, target: float | None = None) -> Tensor:
    """-r, or max(0, target - r), which lets go of images that are good enough (n,)."""
    return -reward if target is None else (target - reward).relu()


def through_rewards(images: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A scalar a row (n,) with the gradient that ``score`` has in the images, and the detached loss (n,).

    The rewards' graph is gone before the generator's backward begins. Images whose loss or gradient is not finite get
    none.

    Args:
        images: (n, 3, H, W).
        score: images to what is minimised (n,).
    """
    pixels = images.detach().requires_grad_()
    with torch.enable_grad():
        loss = score(pixels)
        gradient = torch.autograd.grad(loss.sum(), pixels, allow_unused=True)[0]
    if gradient is None:
        raise RewardError("the optimised rewards have no gradient in the images")
    flat = gradient.flatten(1)
    fine = loss.detach().isfinite() & flat.isfinite().all(1)
    flat = torch.where(fine[:, None], flat, 0.0)
    return (images.flatten(1) * flat).sum(1), torch.where(fine, loss.detach(), 0.0)


class DirectGradients(Online):
    """What ``draft`` and ``srpo`` share: rewards that are learnt from, rewards that watch, and what is reported."""

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        rewards = problem.rewards
        self.optimised, self.watching = (
            RewardMix([r for r in rewards.rewards if (r.mix.weight != 0) is wanted], rewards.drop_nonfinite)
            for wanted in (True, False)
        )
        names = rewards.names
        each = [f"{kind}/{name}" for name in names for kind in ("reward", "scored")]
        self.losses_reported = ("loss", "kl", "active", *each)
        self.shown: list[Tensor] = []

    def scored(self, raw: dict[str, Tensor], images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Rows of all rewards' scores; the held-out ones are asked here."""
        self.shown.append(images[: SHOWN - sum(map(len, self.shown))].detach())
        found = {name: values.detach() for name, values in raw.items()}
        with torch.no_grad():
            found |= self.watching.score(images.detach(), prompts)
        scores = {f"reward/{name}": values.nan_to_num(0, 0, 0) for name, values in found.items()}
        return scores | {f"scored/{name}": values.isfinite().float() for name, values in found.items()}

    def report(self, means: dict[str, float]) -> StepResult:
        """Means of rewards are over what was scored."""
        images, self.shown = torch.cat(self.shown), []
        counts = {name: means.pop(f"scored/{name}") for name in self.problem.rewards.names}
        for name, count in counts.items():
            mean = means.pop(f"reward/{name}")
            if count:
                means[f"reward/{name}"] = mean / count
        return StepResult(means, images)

    def loss(self, rewards: Tensor) -> Tensor:
        return reward_loss(rewards, self.config.target)
