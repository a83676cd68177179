"""The contract of rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from t2ialign.parts.reward import ReferenceReward, Reward
from t2ialign.testing.contract import Contract, check_tensor, close, random_images

#: Prompts that the rewards of the shapes world understand, too; each twice, for rewards that compare a prompt's images.
PROMPTS = ("a red circle", "a blue square") * 3
SCORES = "a reward returns one float32 score per image, (B,)"


class RewardContract(Contract):
    """See ``check_reward``."""

    def __init__(
        self,
        reward: Reward,
        images: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        differentiable: bool | None = None,
    ) -> None:
        self.reward = reward
        self.name = f"{type(reward).__name__}.{'agree' if isinstance(reward, ReferenceReward) else 'score'}"
        self.prompts = list(prompts or PROMPTS)
        self.images = (random_images(len(self.prompts)) if images is None else images).to(reward.device)
        self.differentiable = type(reward).differentiable if differentiable is None else differentiable

    def checks(self) -> list[Callable[[], None]]:
        checks = [self.keeps_its_inputs, self.shape, self.extremes, self.repeats, self.order]
        if not self.reward.per_prompt:
            checks.append(self.alone)
        if self.differentiable:
            checks.append(self.gradients)
        return checks

    def score(self, images: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """The scores of images that stand for some rows."""
        rows = range(len(self.prompts)) if rows is None else rows
        if isinstance(self.reward, ReferenceReward):
            return self.reward.agree(images, self.images.flip(3)[list(rows)])
        return self.reward.score(images, [self.prompts[row] for row in rows])

    def shape(self) -> None:
        """One finite float32 score per image."""
        check_tensor(self.score(self.images), f"what {self.name} returns", (len(self.prompts),), SCORES)

    def extremes(self) -> None:
        """Black and white images have finite scores."""
        for value in (0.0, 1.0):
            scores = self.score(torch.full_like(self.images, value))
            assert bool(scores.isfinite().all()), (
                f"{self.name} is {scores[~scores.isfinite()][0].item()} for images that are {value:g} everywhere; a"
                " score that is not finite stops the run"
            )

    def repeats(self) -> None:
        """The same images have the same scores again."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            first = self.score(self.images)
            torch.manual_seed(2)
            second = self.score(self.images)
        assert close(first, second), (
            f"{self.name} gives the same images {first[0].item():.5g} and then {second[0].item():.5g}; a score is a"
            " function of image and prompt: no dropout, no random crops"
        )

    def keeps_its_inputs(self) -> None:
        """The images are left as they were."""
        given = self.images.clone()
        self.score(given)
        assert torch.equal(given, self.images), (
            f"{self.name} changes the images that it is given; other rewards see the same tensor"
        )

    def order(self) -> None:
        """Scores follow their images into another order."""
        rows = list(reversed(range(len(self.prompts))))
        self._compare(rows, self.score(self.images[rows], rows), "in another order")

    def alone(self) -> None:
        """A score does not depend on the other images of the batch."""
        for row in range(len(self.prompts)):
            self._compare([row], self.score(self.images[[row]], [row]), "alone")

    def _compare(self, rows: list[int], found: Tensor, where: str) -> None:
        expected = self.score(self.images)[rows]
        assert close(found, expected), (
            f"{self.name} gives an image {expected[0].item():.5g} in one batch and {found[0].item():.5g} {where}; a"
            " score must not depend on the other images of its batch"
        )

    def gradients(self) -> None:
        """Gradients flow from every score to its own image."""
        images = self.images.clone().requires_grad_()
        scores = self.score(images)
        assert scores.requires_grad, (
            f"{self.name} has no gradient, and the reward says differentiable = True; never detach, wrap in no_grad or"
            " round then"
        )
        (gradient,) = torch.autograd.grad(scores[0], images)
        assert bool(gradient.isfinite().all()), f"{self.name} has a gradient that is not finite; optimizers follow it"
        assert bool((gradient[0] != 0).any()), (
            f"{self.name} has a gradient of zero, and the reward says differentiable = True; something rounds or clamps"
        )
        assert self.reward.per_prompt or not bool((gradient[1:] != 0).any()), (
            f"the gradient of one score of {self.name} reaches other images; a score depends on its own image alone"
        )


def check_reward(
    reward: Reward,
    images: Tensor | None = None,
    prompts: Sequence[str] | None = None,
    differentiable: bool | None = None,
) -> None:
    """Check that a reward keeps its contract.

    Args:
        reward: a loaded reward, ``MyReward(MyReward.Config())``.
        images: (B, 3, H, W) in [0, 1]; default: six of noise, 32 x 32.
        prompts: B; default: two prompts, each three times.
        differentiable: whether gradients are promised; default: what the class says.

    Raises:
        AssertionError: one sentence on what is wrong, and what the contract says.
    """
    RewardContract(reward, images, prompts, differentiable).hold()
