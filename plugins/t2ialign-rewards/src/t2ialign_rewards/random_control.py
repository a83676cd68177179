"""Random numbers as a reward: what an optimizer gains from it, it gains from any reward at all."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from t2ialign.parts.reward import Reward


class RandomControl(Reward):
    """Unit Gaussian numbers that depend on the image's pixels alone and mean nothing."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()
        digests = [hashlib.blake2b(image.numpy().tobytes()).digest() for image in pixels]
        return torch.tensor([random.Random(digest).gauss(0, 1) for digest in digests], device=images.device)
