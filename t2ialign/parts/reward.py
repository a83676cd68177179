"""Scores of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from t2ialign.declaration import Part

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Part, ABC):
    """A score of images, higher is better.

    A score must not depend on the other images of the batch, unless the reward is ``per_prompt``. Models load in
    ``__init__`` or on first use.
    """

    role = "reward"
    #: True when ``score`` back-propagates to the images; never detach or wrap in no_grad then.
    differentiable: ClassVar[bool] = False
    #: True when a score compares an image with the others of its prompt (diversity): ``score`` then sees all images of
    #: its prompts at once, and the reward is a diagnostic that cannot be optimised.
    per_prompt: ClassVar[bool] = False

    #: True when the scores come from another process, which may be away for a while (``Unavailable``).
    elsewhere: ClassVar[bool] = False
    #: True where NaN is an answer for an image without a score (``run.nonfinite = "drop"``); whoever scores sets it.
    may_miss: bool = False

    def begin(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Start what can run while other rewards work; ``score`` follows with the same tensor and prompts."""
        return

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images against their prompts.

        Args:
            images: float (B, 3, H, W) in [0, 1] on any device.
            prompts: B strings.

        Returns:
            Scores (B,), float32.
        """

    def score_again(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score`` once more, past anything that was remembered; a run asks whether both are equal."""
        return self.score(images, prompts)

    def explain(self, images: Tensor, prompts: Sequence[str]) -> list[str] | None:
        """A sentence on each image that was just scored, which evaluations keep beside it; None: nothing to say."""
        return None


class ReferenceReward(Reward):
    """A score against a reference image: the base model's, drawn from the same noise by another sampler.

    Its options have ``sampler``, that sampler's table (None: the run's sampler), and it is registered with
    provides={"reference"}. Every evaluation measures it; only optimizers that provide "references" can optimise it.
    """

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise TypeError(f"{type(self).__name__} compares with reference images; only runs can score it")

    def against(self, images: Tensor, references: Tensor, prompts: Sequence[str]) -> Tensor:
        """``agree``, for rewards that look at the prompts, too."""
        return self.agree(images, references)

    def explain_against(self, images: Tensor, references: Tensor, prompts: Sequence[str]) -> list[str] | None:
        """As ``explain``, of images that were just compared."""
        return None

    @abstractmethod
    def agree(self, images: Tensor, references: Tensor) -> Tensor:
        """Scores (B,), float32, of images (B, 3, H, W) in [0, 1] against their references of the same shape."""
