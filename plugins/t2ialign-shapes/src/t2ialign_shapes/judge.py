"""Does a picture show what a caption says? The rules of GenEval on exact detections.

All functions broadcast: detections of B pictures against requirements of B captions give [B], and
detections [B, 1, ...] against requirements [M] give every pair, [B, M].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign_shapes.captions import BACKGROUNDS, COLORS, RELATIONS, SHAPES, Caption
from t2ialign_shapes.detections import Detections
from t2ialign_shapes.layout import Layout, index_of

MIN_OFFSET = 2.0
"""Pixels by which centres must differ before one object counts as beside another."""

EXTRA_PENALTY = 0.1
RELATION_SHARE = 0.4
WRONG_BACKGROUND = 0.5


@dataclass(slots=True)
class Requirements:
    """What M captions demand; -1 stands for anything (colour, background) or nothing (second).

    Attributes:
        count: int64 [M], how many of the first thing; exact if above one.
        shapes, colors: int64 [M, 2], of the first and second thing.
        relation: int64 [M], index into `captions.RELATIONS`.
        background: int64 [M], index into `captions.BACKGROUNDS`.
    """

    count: Tensor
    shapes: Tensor
    colors: Tensor
    relation: Tensor
    background: Tensor

    @property
    def pair(self) -> Tensor:
        """Whether there is a second thing, bool [M]."""
        return self.shapes[..., 1] >= 0

    @property
    def objects(self) -> Tensor:
        """Number of objects demanded, int64 [M]."""
        return self.count + self.pair


def require(captions: Sequence[Caption], device: torch.device | str = "cpu") -> Requirements:
    """Write captions as tensors."""

    def two(words: Sequence[str], names: list[str | None]) -> list[int]:
        return [index_of(words, name) for name in (*names, None)[:2]]

    rows = [
        (
            caption.things[0].count,
            two(SHAPES, [thing.shape for thing in caption.things]),
            two(COLORS, [thing.color for thing in caption.things]),
            index_of(RELATIONS, caption.relation),
            index_of(BACKGROUNDS, caption.background),
        )
        for caption in captions
    ]
    return Requirements(*(torch.tensor(column, device=device) for column in zip(*rows, strict=True)))


def expect(layout: Layout) -> Detections:
    """What a perfect detector would report for rendered layouts."""
    return Detections(layout.present, layout.shapes, layout.colors, layout.centers, layout.background)


def matrix(found: Detections, wanted: Requirements) -> Tensor:
    """Judge every picture against every caption: bool [B, M]."""
    columns = (getattr(found, name)[:, None] for name in found.__slots__)
    return satisfied(type(found)(*columns), wanted)


def satisfied(found: Detections, wanted: Requirements) -> Tensor:
    """Strict judgement, bool: everything the caption says is in the picture.

    Two things must be two objects; a counting caption excludes any further object; a relation
    holds when the centres differ by more than `MIN_OFFSET` along its axis, and by more than along
    the other axis; a background that is named must be the one.
    """
    exact = (_shape_matches(found, wanted) & _color_matches(found, wanted)) & _slots(found)
    first, second = exact.unbind(-1)  # [..., K] each; the things differ, so they share no object
    right_count = (first.sum(-1) == wanted.count) & (found.present.sum(-1) == wanted.count)
    one = torch.where(wanted.count > 1, right_count, first.any(-1))
    pairs = first[..., :, None] & second[..., None, :] & _relation_holds(found, wanted)
    both = pairs.any((-1, -2))
    return torch.where(wanted.pair, both, one) & _background_matches(found, wanted)


def grade(found: Detections, wanted: Requirements) -> Tensor:
    """Graded judgement, float32 in [0, 1]: a dense reward with the same optimum as `satisfied`.

    Every demanded object earns half for its shape and half for its colour; where a relation is
    demanded, `RELATION_SHARE` of that is earned only if it holds. Each extra object costs
    `EXTRA_PENALTY`; a wrong background halves the rest.
    """
    credit = 0.5 * _shape_matches(found, wanted) + 0.5 * _color_matches(found, wanted)
    first, second = (credit * _slots(found)).unbind(-1)
    # Counting, and a single thing as its special case: the best `count` objects.
    ranked = first.sort(-1, descending=True).values
    rank = torch.arange(ranked.shape[-1], device=ranked.device)
    one = (ranked * (rank < wanted.count[..., None])).sum(-1) / wanted.count
    # Two things: the best two different objects; a missing one earns nothing.
    together = (first[..., :, None] + second[..., None, :]) / 2
    related = _relation_holds(found, wanted)
    together = together * (1 - RELATION_SHARE * ~related)
    same = torch.eye(ranked.shape[-1], dtype=torch.bool, device=ranked.device)
    both = together.masked_fill(same, 0).amax((-1, -2))
    alone = (1 - RELATION_SHARE * (wanted.relation >= 0)) / 2
    both = torch.maximum(both, alone * torch.maximum(first.amax(-1), second.amax(-1)))

    extra = (found.present.sum(-1) - wanted.objects).clamp(min=0)
    score = torch.where(wanted.pair, both, one) - EXTRA_PENALTY * extra
    return score.clamp(min=0) * torch.where(_background_matches(found, wanted), 1, WRONG_BACKGROUND)


def _slots(found: Detections) -> Tensor:
    return found.present[..., None]


def _shape_matches(found: Detections, wanted: Requirements) -> Tensor:
    """bool [..., K, 2]: object k has the shape of thing 0, thing 1."""
    return found.shapes[..., None] == wanted.shapes[..., None, :]


def _color_matches(found: Detections, wanted: Requirements) -> Tensor:
    """bool [..., K, 2]: object k has the colour of thing 0, thing 1, or any colour will do."""
    color = wanted.colors[..., None, :]
    return (found.colors[..., None] == color) | (color < 0)


def _background_matches(found: Detections, wanted: Requirements) -> Tensor:
    return (found.background == wanted.background) | (wanted.background < 0)


def _relation_holds(found: Detections, wanted: Requirements) -> Tensor:
    """bool [..., K, K]: object i lies to object j as the caption says (no relation: any way)."""
    offset = found.centers[..., :, None, :] - found.centers[..., None, :, :]
    dx, dy = offset.unbind(-1)
    beside = dx.abs() > dy.abs()
    holds = torch.stack(  # in the order of RELATIONS
        [
            beside & (dx < -MIN_OFFSET),
            beside & (dx > MIN_OFFSET),
            ~beside & (dy < -MIN_OFFSET),
            ~beside & (dy > MIN_OFFSET),
        ],
        -1,
    )
    holds, relation = torch.broadcast_tensors(holds, wanted.relation[..., None, None, None])
    chosen = holds.gather(-1, relation[..., :1].clamp(min=0)).squeeze(-1)
    return chosen | (relation[..., 0] < 0)
