"""Images at the edge of the program: PNG files and grids worth looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from t2ialign.storage import files

MIN_TILE = 96  # tiny models draw 32 px; nobody sees anything at that size


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] to an 8-bit RGB image, rounded."""
    return to_pils(image[None])[0]


def to_pils(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] to 8-bit RGB images; rounded on their device, so that a quarter of the bytes leave it."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def save_png(image: Tensor | Image.Image, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write a PNG atomically, with text chunks (prompt, seed, ...)."""
    files.write_bytes(path, png(image, texts))


def png(image: Tensor | Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """A PNG file with text chunks."""
    picture = to_pil(image) if isinstance(image, Tensor) else image
    chunks = PngInfo()
    for key, value in (texts or {}).items():
        chunks.add_itxt(key, value)
    stream = BytesIO()
    picture.save(stream, format="PNG", pnginfo=chunks)
    return stream.getvalue()


def grid(rows: Sequence[Tensor], row_titles: Sequence[str] = ()) -> Image.Image:
    """Rows of images under one another, columns numbered from 1.

    The prompts stand beside the picture as text (``numbered``), where any script and any length can be read.

    Args:
        rows: each (n, 3, H, W) in [0, 1]; all of one image size.
        row_titles: text left of each row, for example ("base", "tuned").
    """
    height, width = rows[0].shape[-2:]
    scale = max(1, -(-MIN_TILE // min(height, width)))
    tile_w, tile_h, gap, bottom = width * scale, height * scale, 4, 14
    left = max((int(ImageFont.load_default().getlength(title)) + 12 for title in row_titles), default=0)
    columns = max(len(row) for row in rows)
    canvas = Image.new(
        "RGB", (left + columns * (tile_w + gap) + gap, len(rows) * (tile_h + gap) + gap + bottom), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        top = gap + r * (tile_h + gap)
        if row_titles:
            draw.text((4, top + tile_h // 2 - 6), row_titles[r], fill="black")
        for c, image in enumerate(row):
            tile = to_pil(image).resize((tile_w, tile_h), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + gap + c * (tile_w + gap), top))
    for c in range(columns):
        draw.text((left + gap + c * (tile_w + gap), canvas.height - bottom), str(c + 1), fill="black")
    return canvas


def numbered(prompts: Sequence[str]) -> str:
    """The text beside a grid: one line for each column."""
    return "".join(f"{place}. {' '.join(text.split())}\n" for place, text in enumerate(prompts, 1))
