"""Image files of any kind as tensors: the edge where pictures of others come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

#: What Pillow raises for files that are broken, foreign or absurdly large.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: Path) -> tuple[Tensor, dict[str, str]]:
    """An image file as RGB, and its text chunks.

    Grey becomes three equal channels, transparency is laid on white, 16 bits keep their precision where Pillow reads
    them (grey), and a camera's orientation is applied.

    Returns:
        float32 (3, H, W) in [0, 1], and for a PNG its texts ("prompt", "seed", ...).

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: see ``UNREADABLE``.
    """
    with Image.open(path) as file:
        file.load()
        texts = {key: value for key, value in getattr(file, "text", {}).items() if isinstance(value, str)}
        picture = ImageOps.exif_transpose(file)
        return _pixels(picture), texts


def _pixels(picture: Image.Image) -> Tensor:
    if picture.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32) / 65535)
        return grey.clamp(0, 1).expand(3, -1, -1)
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 255
