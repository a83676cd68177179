"""``geneval``: objects, counts, colours and places, by a detector and the benchmark's rules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from t2ialign.storage.images import to_pil
from t2ialign_judges.colors import Colors
from t2ialign_judges.config import GenEvalConfig
from t2ialign_judges.detectors import Detector, Object, kind_of
from t2ialign_judges.ruled import Look, RuledReward
from t2ialign_judges.rules import Asked, Limits
from t2ialign_rewards import weights
from t2ialign_rewards.clip import load_tower
from t2ialign_rewards.config import ClipConfig


class GenEval(RuledReward):
    """GenEval on any detector of transformers; images are judged as the 8-bit pictures that a file would hold."""

    Config = GenEvalConfig

    def look(self, images: Tensor, asked: Sequence[Asked]) -> list[Look]:
        return [self._look(to_pil(image), wanted) for image, wanted in zip(images, asked, strict=True)]

    def _look(self, image: Image.Image, asked: Asked) -> Look:
        found: dict[str, list[Object]] = self.detector(image, asked.classes)

        @cache
        def color_of(name: str, index: int) -> str:
            one = found[name][index]
            return self.colors(image, name, one.detection.box, one.mask)

        return {name: [one.detection for one in objects] for name, objects in found.items()}, color_of

    @cached_property
    def folder(self) -> Path:
        return weights.model_folder(self.config.model, self.config.revision)

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        config = self.config
        usual, counting, overlap = kind_of(self.folder).defaults
        threshold = usual if config.threshold is None else config.threshold
        if usual == counting:  # the model has no threshold of its own for counting
            counting = threshold
        return Limits(
            threshold,
            counting if config.counting_threshold is None else config.counting_threshold,
            config.max_objects,
            overlap if config.max_overlap is None else config.max_overlap,
            config.position_threshold,
        )

    @cached_property
    def detector(self) -> Detector:
        """The detector, loaded on first use; so is the CLIP, which only prompts with colours need."""
        least = min(self.limits.threshold, self.limits.counting_threshold)
        with torch.inference_mode(False):
            return kind_of(self.folder)(self.folder, self.config.dtype, self.device, least, self.config.text_threshold)

    @cached_property
    def colors(self) -> Colors:
        options = ClipConfig(model=self.config.clip, tokenizer=self.config.clip, revision=self.config.clip_revision)
        with torch.inference_mode(False):
            return Colors(load_tower(options).eval().requires_grad_(False).to(self.device))
