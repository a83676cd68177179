"""Pictures inside a page, as data URIs. No torch."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

TILE = 192  # pixels; larger images are shrunk, since the originals lie beside the page
LARGE = 512  # of images that are worth enlarging
GAP, FOOT = 4, 14  # around the tiles of a grid, and the line of column numbers below them (storage.images.grid)


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        uri: the image as a data URI.
        prompts: of its columns, from left to right, as far as the file says.
        explanations: reward -> what it had to say, as far as the file says.
    """

    uri: str
    width: int
    height: int
    prompts: tuple[str, ...]
    explanations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, rows: int = 1) -> Picture:
        """A PNG file of ``rows`` rows of images, shrunk to about ``TILE`` pixels a row."""
        with Image.open(path) as image:
            data, (width, height) = path.read_bytes(), image.size
            if image.height > 1.5 * TILE * rows:
                small = image.resize((max(1, image.width * TILE * rows // image.height), TILE * rows))
                data, (width, height) = _encoded(small, "PNG"), small.size
            return cls(_uri(data, "png"), width, height, _prompts(image), json.loads(_told(image)))

    @classmethod
    def large(cls, path: Path) -> Picture:
        """An image file to look at closely: as it is up to ``TILE`` pixels, else at most ``LARGE``, as JPEG."""
        with Image.open(path) as image:
            if max(image.size) <= TILE:
                return cls.read(path)
            small = image.convert("RGB")
            small.thumbnail((LARGE, LARGE))
            uri = _uri(_encoded(small, "JPEG", quality=88), "jpeg")
            return cls(uri, small.width, small.height, _prompts(image), json.loads(_told(image)))


def tiles(path: Path) -> list[Picture]:
    """The images of a one-row grid by themselves, each with its prompt; the whole picture where it is no such grid."""
    with Image.open(path) as image:
        prompts = _prompts(image)
        step, rest = divmod(image.width - GAP, max(1, len(prompts)))
        height = image.height - FOOT - 2 * GAP
        if not prompts or rest or step <= GAP or height < 1:
            return [Picture.read(path)]
        found = []
        for column, prompt in enumerate(prompts):
            left = GAP + column * step
            tile = image.crop((left, GAP, left + step - GAP, GAP + height))
            tile.thumbnail((TILE, TILE))
            found.append(Picture(_uri(_encoded(tile, "PNG"), "png"), tile.width, tile.height, (prompt,)))
        return found


def _prompts(image: Image.Image) -> tuple[str, ...]:
    texts = image.info.get("prompts", "")
    return tuple(texts.split("\n")) if texts else ()


def _told(image: Image.Image) -> str:
    told: str = image.info.get("explanations", "{}")
    return told


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
