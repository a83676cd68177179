"""Images of words, drawn in the fonts that matplotlib brings."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from t2ialign.storage.image_files import pixels_of

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def written(text: str, font: str = "DejaVuSans", size: int = 60, side: int = 512) -> Tensor:
    """A text in black on white, float32 (3, side, side)."""
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.text((side // 2, side // 2), text, "black", ImageFont.truetype(str(FONTS / f"{font}.ttf"), size), "mm")
    return pixels_of(image)


def noisy(image: Tensor, std: float) -> Tensor:
    """With Gaussian noise of this standard deviation, on the [0, 1] scale."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + std * noise).clamp(0, 1)
