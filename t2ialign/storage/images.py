"""Images at the edge of the program: PNG files and grids worth looking at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

MIN_TILE = 96  # tiny models draw 32 px; nobody sees anything at that size


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] to an 8-bit RGB image, rounded."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def save_png(image: Tensor | Image.Image, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write a PNG atomically, with text chunks (prompt, seed, ...)."""
    picture = to_pil(image) if isinstance(image, Tensor) else image
    chunks = PngInfo()
    for key, value in (texts or {}).items():
        chunks.add_itxt(key, value)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    picture.save(temporary, format="PNG", pnginfo=chunks)
    temporary.replace(path)


def grid(rows: Sequence[Tensor], captions: Sequence[str] = (), row_titles: Sequence[str] = ()) -> Image.Image:
    """Rows of images under one another.

    Args:
        rows: each (n, 3, H, W) in [0, 1]; all of one image size.
        captions: text under each column.
        row_titles: text left of each row, for example ("base", "tuned").
    """
    height, width = rows[0].shape[-2:]
    scale = max(1, -(-MIN_TILE // min(height, width)))
    tile_w, tile_h, gap = width * scale, height * scale, 4
    left = 56 if row_titles else 0
    lines = [_wrap(caption, tile_w // 6) for caption in captions]
    bottom = 12 * max((len(text) for text in lines), default=0) + (4 if lines else 0)
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
    for c, text in enumerate(lines):
        draw.multiline_text(
            (left + gap + c * (tile_w + gap), canvas.height - bottom), "\n".join(text), fill="black", spacing=1
        )
    return canvas


def _wrap(text: str, width: int, most: int = 4) -> list[str]:
    """Break a caption into at most ``most`` lines of about ``width`` characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " ..."]
