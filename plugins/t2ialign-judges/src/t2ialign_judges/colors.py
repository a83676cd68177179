"""The colour of an object by zero-shot classification with CLIP, as GenEval does it."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from t2ialign.storage.image_files import pixels_of
from t2ialign_judges.rules import COLORS, Box
from t2ialign_rewards.clip import ClipTower

TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
#: What the pixels around a segment become.
BACKGROUND = (0x99, 0x99, 0x99)


class Colors:
    """Tells one of ``COLORS``, or "" for an object without any pixel."""

    def __init__(self, tower: ClipTower) -> None:
        self.tower = tower
        self._texts = lru_cache(maxsize=None)(self._class_texts)

    def __call__(self, image: Image.Image, name: str, box: Box, mask: Tensor | None) -> str:
        """The colour of what lies in a box, of a class, inside its mask if there is one."""
        part = cut_out(image, box, mask)
        if part is None:
            return ""
        device = self.tower.visual_projection.weight.device
        embed = self.tower.image_embeds(pixels_of(part)[None].to(device))[0]
        return COLORS[int((self._texts(name) @ embed).argmax())]

    def _class_texts(self, name: str) -> Tensor:
        """Unit embeddings (colours, D), each the mean over the templates."""
        rows = []
        for color in COLORS:
            texts = [template.format(color=color, name=name) for template in TEMPLATES]
            rows.append(F.normalize(self.tower.text_embeds(texts).mean(0), dim=-1))
        return torch.stack(rows)


def cut_out(image: Image.Image, box: Box, mask: Tensor | None) -> Image.Image | None:
    """The part of an image in a box, grey outside the mask; None where nothing is left of it."""
    x0, y0, x1, y1 = (round(value) for value in box)
    if x1 <= x0 or y1 <= y0 or not all(math.isfinite(value) for value in box):
        return None
    if mask is not None:
        grey = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, grey, Image.fromarray(mask.cpu().numpy().astype("uint8") * 255))
    return image.crop((x0, y0, x1, y1))
