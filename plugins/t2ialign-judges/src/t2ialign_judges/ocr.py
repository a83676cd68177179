"""``ocr``: is the text that a prompt asks for written in the image? Read by RapidOCR, without a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2ialign.errors import RewardError, UsageError
from t2ialign.parts.reward import Reward
from t2ialign.storage.images import to_pil
from t2ialign_judges import texts
from t2ialign_judges.config import OcrConfig

Lines = list[tuple[str, float]]
#: Images whose text is remembered: enough for the sentences on a batch that was just scored.
REMEMBERED = 1024


class Ocr(Reward):
    """Similarity of the text in the image to the prompt's target, in [0, 1]. Not differentiable."""

    Config = OcrConfig

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,), float32.

        Raises:
            UsageError: a prompt asks for no text.
            RewardError: the engine fails; an image without text is no failure, and scores 0.
        """
        wanted = [self._target(prompt) for prompt in prompts]  # before any time is spent on reading
        scores = [self._score(self._read(image), target) for image, target in zip(images, wanted, strict=True)]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def score_again(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self._read_before.clear()
        return self.score(images, prompts)

    def explain(self, images: Tensor, prompts: Sequence[str]) -> list[str]:
        return [
            f'read "{" / ".join(text for text, _ in self._read(image))}", wanted "{self._target(prompt)}"'
            for image, prompt in zip(images, prompts, strict=True)
        ]

    def _target(self, prompt: str) -> str:
        try:
            return " ".join(texts.targets(prompt, self.config.key, self.config.every))
        except ValueError as error:
            raise UsageError(f"{self.label}: the prompt '{prompt}' {error}") from error

    def _score(self, lines: Lines, target: str) -> float:
        read = texts.joined(lines)
        if self.config.form == "exact":
            return float(texts.normalised(read) == texts.normalised(target))
        return texts.similarity(read, target, self.config.contained)

    def _read(self, image: Tensor) -> Lines:
        """Lines with their confidences, in reading order; those of the last images are remembered."""
        picture = to_pil(image)
        key = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        if key not in self._read_before:
            while len(self._read_before) >= REMEMBERED:
                del self._read_before[next(iter(self._read_before))]
            self._read_before[key] = self._lines(image, picture)
        return self._read_before[key]

    @cached_property
    def _read_before(self) -> dict[str, Lines]:
        return {}

    def _lines(self, image: Tensor, picture: Image.Image) -> Lines:
        try:
            found = self.engine(picture)
        except Exception as error:  # onnxruntime and OpenCV raise anything
            raise RewardError(f"{self.label}: the engine failed: {type(error).__name__}: {error}", image) from error
        return list(zip(found.txts or (), found.scores or (), strict=True))

    @cached_property
    def engine(self) -> Any:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise UsageError(
                f"{self.label} needs more packages ({error}): pip install 't2ialign-judges[ocr]'"
            ) from error
        options: dict[str, Any] = {
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
            "Global.log_level": "error",
            "Global.use_cls": self.config.upside_down,
            "Det.limit_type": "max",
            "Det.limit_side_len": self.config.side,
        }
        return RapidOCR(params=options)
