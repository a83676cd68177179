"""What a detector reports, as data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MAX_DETECTIONS = 6


@dataclass(slots=True)
class Detections:
    """What a batch of B pictures shows: up to K = MAX_DETECTIONS objects each, largest first.

    Attributes:
        present: bool [B, K], whether the slot holds an object.
        shapes: int64 [B, K], index into `captions.SHAPES`.
        colors: int64 [B, K], index into `captions.COLORS`.
        centers: float32 [B, K, 2], x and y in pixels.
        background: int64 [B], index into `captions.BACKGROUNDS`.
    """

    present: Tensor
    shapes: Tensor
    colors: Tensor
    centers: Tensor
    background: Tensor
