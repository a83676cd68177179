"""Two-dimensional rotary positions, normalised so that every scale spans the same range (arXiv 2412.04431)."""

from __future__ import annotations

import torch
from torch import Tensor

from t2ialign_infinity.ladders import Ladder

BASE = 10_000.0


def rotation(ladder: Ladder, reference: tuple[int, int], head_dim: int) -> Tensor:
    """Unit complex numbers (L, hd / 2) of all tokens of all scales.

    Token (i, j) of an h x w scale is at row round(i H / h) and column round(j W / w) of the reference grid (H, W), the
    last scale of the 1M ladder whatever the resolution. The first half of the frequencies turns with the row, the
    second with the column.
    """
    count = head_dim // 4
    frequencies = BASE ** (-torch.arange(count, dtype=torch.float32) * 4 / head_dim)
    parts = []
    for h, w in ladder:
        row = torch.round(torch.arange(h) * (reference[0] / h))
        column = torch.round(torch.arange(w) * (reference[1] / w))
        angles = torch.cat(
            [
                (row[:, None] * frequencies)[:, None].expand(h, w, count),
                (column[:, None] * frequencies)[None].expand(h, w, count),
            ],
            dim=-1,
        )
        parts.append(angles.flatten(0, 1))
    angles = torch.cat(parts)
    return torch.polar(torch.ones_like(angles), angles)
