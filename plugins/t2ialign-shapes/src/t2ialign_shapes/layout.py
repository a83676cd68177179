"""Layouts: where the objects of a picture lie, drawn so that they satisfy a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign_shapes.captions import BACKGROUNDS, COLORS, SHAPES, Caption
from t2ialign_shapes.world import SIZE

MAX_OBJECTS = 4

RADIUS_RANGE = {1: (6.5, 11.0), 2: (5.2, 7.2), 3: (4.8, 5.8), 4: (4.5, 5.2)}
"""Smallest and largest radius in pixels by number of objects.

Smaller objects do not survive an autoencoder with 4x4-pixel latents: squares become circles.
"""

CANONICAL_COLOR = {"circle": "red", "square": "blue", "triangle": "green"}
"""The colour a generator is taught for an object whose colour the caption leaves open."""

CANDIDATES = 24


@dataclass(slots=True)
class Layout:
    """A batch of B pictures to be rendered; object slots beyond ``count`` are ignored.

    Attributes:
        count: int64 [B], number of objects, 1 to MAX_OBJECTS.
        centers: float32 [B, MAX_OBJECTS, 2], x and y in pixels.
        radii: float32 [B, MAX_OBJECTS] in pixels.
        shapes: int64 [B, MAX_OBJECTS], index into `captions.SHAPES`.
        colors: int64 [B, MAX_OBJECTS], index into `captions.COLORS`.
        background: int64 [B], index into `captions.BACKGROUNDS`.
        contrast: float32 [B] in (0, 1]; below 1 objects fade into the background.
    """

    count: Tensor
    centers: Tensor
    radii: Tensor
    shapes: Tensor
    colors: Tensor
    background: Tensor
    contrast: Tensor

    @property
    def present(self) -> Tensor:
        """Which object slots are in use, bool [B, MAX_OBJECTS]."""
        return torch.arange(MAX_OBJECTS) < self.count[:, None]


def placement_kind(caption: Caption) -> tuple[int, str | None]:
    """Number of objects and relation: all that object positions depend on."""
    return len(caption.objects), caption.relation


def sample_centers(radii: Tensor, relation: str | None, generator: torch.Generator) -> Tensor:
    """Draw object centres that lie inside the canvas, keep apart and obey the relation.

    Each picture takes the first valid one of `CANDIDATES` uniform proposals; pictures without a
    valid one are drawn again.

    Args:
        radii: float32 [N, n] in pixels.
        relation: how object 0 lies to object 1 (n = 2), or None.

    Returns:
        float32 [N, n, 2], x and y in pixels.
    """
    centers = torch.empty(*radii.shape, 2)
    todo = torch.arange(len(radii))
    while len(todo):
        radius = radii[todo, None, :, None]  # [T, 1, n, 1]
        unit = torch.rand(len(todo), CANDIDATES, radii.shape[1], 2, generator=generator)
        proposals = radius + 0.5 + unit * (SIZE - 1 - 2 * radius)
        valid = _apart(proposals, radii[todo]) & _related(proposals, relation)
        found, first = valid.max(1)
        centers[todo[found]] = proposals[found, first[found]]
        todo = todo[~found]
    return centers


def _apart(centers: Tensor, radii: Tensor) -> Tensor:
    """Whether all objects keep a gap: centers [T, C, n, 2], radii [T, n] -> bool [T, C]."""
    n = radii.shape[1]
    i, j = torch.triu_indices(n, n, offset=1)
    distance = (centers[:, :, i] - centers[:, :, j]).abs().amax(-1)
    return (distance >= 0.93 * (radii[:, i] + radii[:, j])[:, None] + 1).all(-1)


def _related(centers: Tensor, relation: str | None) -> Tensor:
    """Whether object 0 clearly lies as asked to object 1: [T, C, n, 2] -> bool [T, C]."""
    if relation is None:
        return torch.ones(centers.shape[:2], dtype=torch.bool)
    axis = 0 if relation in ("left of", "right of") else 1
    sign = 1 if relation in ("right of", "below") else -1
    offset = centers[:, :, 0] - centers[:, :, 1]
    along, across = sign * offset[..., axis], offset[..., 1 - axis].abs()
    return (along > 8) & (along > 1.25 * across)


def sample_layout(captions: Sequence[Caption], generator: torch.Generator) -> Layout:
    """Draw a layout per caption; whatever the caption leaves open is uniformly random."""
    layout = describe(captions)
    batch = len(captions)
    any_color = torch.randint(len(COLORS), (batch, MAX_OBJECTS), generator=generator)
    # Objects of one thing share its colour: slots are filled from slot 0 when counting.
    counting = torch.tensor([caption.things[0].count > 1 for caption in captions])
    any_color = torch.where(counting[:, None], any_color[:, :1], any_color)
    layout.colors = torch.where(layout.colors < 0, any_color, layout.colors)
    any_background = torch.randint(len(BACKGROUNDS), (batch,), generator=generator)
    layout.background = torch.where(layout.background < 0, any_background, layout.background)
    unit = torch.rand(batch, MAX_OBJECTS, generator=generator)
    for (n, relation), rows in group_by_placement(captions).items():
        low, high = RADIUS_RANGE[n]
        layout.radii[rows, :n] = low + (high - low) * unit[rows, :n]
        layout.centers[rows, :n] = sample_centers(layout.radii[rows, :n], relation, generator)
    return layout


def describe(captions: Sequence[Caption]) -> Layout:
    """Fill in what the captions say; colours and backgrounds left open are -1, places are 0."""
    batch = len(captions)
    layout = Layout(
        count=torch.tensor([len(caption.objects) for caption in captions]),
        centers=torch.zeros(batch, MAX_OBJECTS, 2),
        radii=torch.zeros(batch, MAX_OBJECTS),
        shapes=torch.zeros(batch, MAX_OBJECTS, dtype=torch.long),
        colors=torch.full((batch, MAX_OBJECTS), -1),
        background=torch.tensor([index_of(BACKGROUNDS, c.background) for c in captions]),
        contrast=torch.ones(batch),
    )
    for row, caption in enumerate(captions):
        for slot, thing in enumerate(caption.objects):
            layout.shapes[row, slot] = SHAPES.index(thing.shape)
            layout.colors[row, slot] = index_of(COLORS, thing.color)
    return layout


def group_by_placement(captions: Sequence[Caption]) -> dict[tuple[int, str | None], Tensor]:
    """Map each placement kind to the int64 rows of the captions that have it."""
    groups: dict[tuple[int, str | None], list[int]] = {}
    for row, caption in enumerate(captions):
        groups.setdefault(placement_kind(caption), []).append(row)
    return {kind: torch.tensor(rows) for kind, rows in groups.items()}


def index_of(words: Sequence[str], word: str | None) -> int:
    """Index of a word in its vocabulary, -1 for None (left open)."""
    return -1 if word is None else words.index(word)
