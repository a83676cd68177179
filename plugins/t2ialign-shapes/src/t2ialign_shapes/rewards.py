"""The exact judge of the shapes world as rewards: what a learned reward can only approximate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import t2ialign
from t2ialign_shapes import captions, detector
from t2ialign_shapes.plugin import ShapesRewardConfig


class ShapesExact(t2ialign.Reward):
    """1.0 where the picture shows everything that its prompt says, else 0.0."""

    differentiable = False
    Config = ShapesRewardConfig

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Judge images against their prompts.

        Args:
            images: float [B, 3, 32, 32] in [0, 1].
            prompts: captions of the shapes world.

        Returns:
            float32 [B], 0 or 1.

        Raises:
            ValueError: a prompt is not of the grammar (see `t2ialign_shapes.captions`).
        """
        return detector.check(images, [captions.parse(prompt) for prompt in prompts]).float()


class ShapesGraded(t2ialign.Reward):
    """Partial credit in [0, 1] for objects, shapes, colours and relation; see `judge.grade`."""

    differentiable = False
    Config = ShapesRewardConfig

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Grade images against their prompts: float32 [B] in [0, 1]; see `ShapesExact.score`."""
        return detector.graded(images, [captions.parse(prompt) for prompt in prompts])
