"""Sizes of images in a spec: one number of pixels for a square, or [height, width]. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of either form."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def off_grid(size: int | Sequence[int], multiple: int, most: float = math.inf) -> str:
    """Why nothing of this size can be drawn where sides are multiples of a number, and at most another; or ""."""
    sides = height_width(size)
    if all(side % multiple == 0 and side <= most for side in sides):
        return ""
    near = [int(min(max(round(side / multiple), 1) * multiple, most)) for side in sides]
    limit = f", {most} at most" if most < math.inf else ""
    return f"height and width must be multiples of {multiple}{limit}; nearest: {shown(near)}"


def shown(size: int | Sequence[int]) -> str:
    """As a spec would have it: a square is one number."""
    height, width = height_width(size)
    return str(height) if height == width else f"[{height}, {width}]"


def _checked(value: Any) -> int | tuple[int, int]:
    """A size as it was written; a pair may be a list."""
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError("must be a whole number of pixels for a square, or [height, width]")
    return (sides[0], sides[1]) if isinstance(value, list | tuple) else sides[0]


_SIDE = {"type": "integer", "minimum": 1}
#: A field of a config: 512 stays a number, [512, 768] becomes a pair, (height, width).
ImageSize = Annotated[
    int | tuple[int, int],
    PlainValidator(_checked),
    WithJsonSchema({"anyOf": [_SIDE, {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}]}),
]
