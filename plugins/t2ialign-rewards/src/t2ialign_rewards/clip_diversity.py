"""Diversity: how far the images of one prompt lie from one another in CLIP space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2ialign_rewards.clip import ClipTower, shared_tower
from t2ialign_rewards.config import ClipDiversityConfig
from t2ialign_rewards.network_reward import NetworkReward


class ImageEmbeds(nn.Module):
    """The image side of a CLIP model as a network of images and prompts."""

    def __init__(self, tower: ClipTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D)."""
        return self.tower.image_embeds(images)


class ClipDiversity(NetworkReward):
    """Mean cosine distance 1 - cos of an image to the others of its prompt; its mean is the mean pairwise distance."""

    differentiable = False
    per_prompt = True
    Config = ClipDiversityConfig

    def load(self) -> ImageEmbeds:
        return ImageEmbeds(shared_tower(self.config, self.device))

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images among those of the same prompt.

        Args:
            images: float (B, 3, H, W) in [0, 1], all images of their prompts.
            prompts: B strings.

        Returns:
            float32 (B,) in [0, 2]; NaN for the only image of a prompt.
        """
        embeds = super().score(images, prompts)
        known = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        groups = torch.tensor([known[prompt] for prompt in prompts], device=embeds.device)
        others = (groups[:, None] == groups).fill_diagonal_(False)
        return ((1 - embeds @ embeds.T) * others).sum(1) / others.sum(1)
