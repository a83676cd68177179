"""The canvas, the palette and the three shapes, shared by renderer and detector."""

from __future__ import annotations

import torch
from torch import Tensor

from t2ialign_shapes.captions import BACKGROUNDS, COLORS

SIZE = 32
"""Side of the square canvas in pixels; pixel (row i, column j) is centred at (j + .5, i + .5)."""

_RGB = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (240, 220, 30),
    "purple": (150, 40, 180),
    "cyan": (30, 210, 220),
    "black": (15, 15, 15),
    "white": (240, 240, 240),
}
OBJECT_RGB = torch.tensor([_RGB[name] for name in COLORS]) / 255
"""Colours of objects, float32 [6, 3] in [0, 1], in the order of `captions.COLORS`."""
BACKGROUND_RGB = torch.tensor([_RGB[name] for name in BACKGROUNDS]) / 255
"""Colours of backgrounds, float32 [2, 3] in [0, 1], in the order of `captions.BACKGROUNDS`."""


def pixel_grid(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return x and y of every pixel centre, each float32 [SIZE, SIZE] in pixels."""
    axis = torch.arange(SIZE, device=device) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def circle_distance(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance in pixels to a circle, negative inside; its area is pi r^2.

    Args:
        dx, dy: offset from the centre in pixels, y downwards.
        radius: in pixels; all arguments broadcast.
    """
    return torch.hypot(dx, dy) - radius


def square_distance(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to a square of half side 0.89 r; its area is (1.78 r)^2."""
    return torch.maximum(dx.abs(), dy.abs()) - 0.89 * radius


def triangle_distance(dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to a triangle that points up; its area is 1.8 r^2.

    The apex lies r above the centre, the base, 2 r wide, 0.8 r below it; the centroid is 0.2 r
    below the centre.
    """
    # Along the unit normals of the upper edges, which run from (0, -r) to (+-r, 0.8 r).
    side = (1.8 * dx.abs() - (dy + radius)) / (1.8**2 + 1) ** 0.5
    return torch.maximum(dy - 0.8 * radius, side)


SIGNED_DISTANCES = (circle_distance, square_distance, triangle_distance)
"""In the order of `captions.SHAPES`."""
