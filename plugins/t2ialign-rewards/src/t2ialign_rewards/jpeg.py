"""JPEG file size as a reward (Black et al. 2024, DDPO): plus or minus kB at a fixed quality."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import torch
from torch import Tensor

from t2ialign.parts.reward import Reward
from t2ialign.storage.images import to_pil
from t2ialign_rewards.config import JpegConfig


class JpegIncompressibility(Reward):
    """Size of the JPEG in kB (1000 bytes): images full of detail score high. Not differentiable."""

    Config = JpegConfig
    sign: ClassVar[float] = 1.0

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        with ThreadPoolExecutor() as pool:  # the encoder works outside the interpreter lock
            sizes = list(pool.map(self._kilobytes, images.cpu()))
        return self.sign * torch.tensor(sizes, dtype=torch.float32, device=images.device)

    def _kilobytes(self, image: Tensor) -> float:
        picture, buffer = to_pil(image), io.BytesIO()
        picture.save(buffer, format="JPEG", quality=self.config.quality)
        megapixels = picture.width * picture.height / 1e6 if self.config.per_megapixel else 1.0
        return buffer.tell() / 1000 / megapixels


class JpegCompressibility(JpegIncompressibility):
    """Minus the size of the JPEG in kB: plain images score high. Not differentiable."""

    sign = -1.0
