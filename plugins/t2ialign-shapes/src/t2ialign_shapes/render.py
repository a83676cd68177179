"""Draw layouts as anti-aliased pictures, a whole batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from t2ialign_shapes.layout import MAX_OBJECTS, Layout
from t2ialign_shapes.world import BACKGROUND_RGB, OBJECT_RGB, SIGNED_DISTANCES, SIZE, pixel_grid


def render(layout: Layout) -> Tensor:
    """Paint the objects of each layout over its background, slot 0 first.

    Returns:
        images: float32 [B, 3, SIZE, SIZE] in [0, 1].
    """
    covered = coverage(layout)
    background = BACKGROUND_RGB[layout.background]  # [B, 3]
    contrast = layout.contrast[:, None, None]
    colors = torch.lerp(background[:, None], OBJECT_RGB[layout.colors], contrast)
    images = background[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    for slot in range(MAX_OBJECTS):
        images = torch.lerp(images, colors[:, slot, :, None, None], covered[:, slot, None])
    return images


def coverage(layout: Layout) -> Tensor:
    """Share of each pixel that lies inside each object, as if it were alone.

    Returns:
        float32 [B, MAX_OBJECTS, SIZE, SIZE] in [0, 1]; 0 for empty slots.
    """
    x, y = pixel_grid()
    center_x, center_y = (layout.centers[..., axis, None, None] for axis in (0, 1))
    offset, radius = (x - center_x, y - center_y), layout.radii[..., None, None]
    share = torch.zeros(*layout.shapes.shape, SIZE, SIZE)
    for shape, distance in enumerate(SIGNED_DISTANCES):
        # A pixel is covered in proportion to how far its centre lies inside the outline.
        inside = (0.5 - distance(*offset, radius)).clamp(0, 1)
        share = torch.where(layout.shapes[..., None, None] == shape, inside, share)
    return share * layout.present[..., None, None]
