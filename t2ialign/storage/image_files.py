"""Image files of any kind as tensors: the edge where pictures of others come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from t2ialign.foreign import check_file
from t2ialign.storage.image_texts import texts_of

#: What is opened, whatever a file's name: no format that runs another program or follows references.
FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "BMP",
    "DIB",
    "TIFF",
    "GIF",
    "AVIF",
    "JPEG2000",
    "TGA",
    "PPM",
    "ICO",
    "QOI",
    "DDS",
)
#: A picture of more pixels is not decoded: a small file can unpack to gigabytes.
MOST_PIXELS = 100_000_000
#: A picture of more than this has to fill its file: no photograph or drawing has so many pixels in a byte.
LARGE, MOST_PER_BYTE = 30_000_000, 200


def read_image(path: Path) -> tuple[Tensor, dict[str, str]]:
    """An image file as RGB, and its text chunks.

    Grey becomes three equal channels, transparency is laid on white, 16 bits keep their precision where Pillow reads
    them (grey), and a camera's orientation is applied.

    Returns:
        float32 (3, H, W) in [0, 1], and its texts ("prompt", "seed", "parameters", ...).

    Raises:
        Exception: whatever Pillow raises for files that are broken, foreign or absurdly large.
    """
    size = check_file(path)
    with Image.open(path, formats=_known()) as file:
        if file.width * file.height > MOST_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels are more than {MOST_PIXELS:,}")
        if file.width * file.height > max(LARGE, MOST_PER_BYTE * size):
            raise ValueError(f"{size:,} bytes would unpack to {file.width} x {file.height} pixels")
        file.load()
        texts = texts_of(file)
        picture = ImageOps.exif_transpose(file)
        return pixels_of(picture), texts


def pixels_in(path: Path) -> int:
    """How many pixels a file tells to have; 0 where it cannot be read as an image."""
    try:
        check_file(path)
        with Image.open(path, formats=_known()) as file:
            return file.width * file.height
    except Exception:  # Pillow's readers raise anything
        return 0


def _known() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def pixels_of(picture: Image.Image) -> Tensor:
    """A picture of any mode as RGB, float32 (3, H, W) in [0, 1]; see ``read_image``."""
    if picture.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32) / 65535)
        return grey.clamp(0, 1).expand(3, -1, -1)
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1).float().div_(255)
