"""JPEG file size as a reward (Black et al. 2024, DDPO): plus or minus kB at a fixed quality."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar
from weakref import ref

import torch
from PIL import Image
from torch import Tensor

from t2ialign.parts.reward import Reward
from t2ialign.storage.images import to_pils
from t2ialign_rewards.config import JpegConfig


class JpegIncompressibility(Reward):
    """Size of the JPEG in kB (1000 bytes): images full of detail score high. Not differentiable."""

    Config = JpegConfig
    sign: ClassVar[float] = 1.0

    def __init__(self, config: JpegConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self._encoders = ThreadPoolExecutor(thread_name_prefix="jpeg")  # encoding is outside the interpreter lock
        self._begun: tuple[ref[Tensor], list[Future[float]]] | None = None

    def begin(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Encode in threads while other rewards work."""
        self._begun = (ref(images), [self._encoders.submit(self._kilobytes, p) for p in to_pils(images)])

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if self._begun is None or self._begun[0]() is not images:
            self.begin(images, prompts)
        assert self._begun is not None
        sizes, self._begun = self._begun[1], None
        kilobytes = [size.result() for size in sizes]
        return self.sign * torch.tensor(kilobytes, dtype=torch.float32, device=images.device)

    def _kilobytes(self, picture: Image.Image) -> float:
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=self.config.quality)
        megapixels = picture.width * picture.height / 1e6 if self.config.per_megapixel else 1.0
        return buffer.tell() / 1000 / megapixels


class JpegCompressibility(JpegIncompressibility):
    """Minus the size of the JPEG in kB: plain images score high. Not differentiable."""

    sign = -1.0
