"""The exact judge of the shapes world as rewards: what a learned reward can only approximate."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ReferenceType, ref

import torch
from torch import Tensor

import t2ialign
from t2ialign_judges.ruled import Look, RuledReward
from t2ialign_judges.rules import Asked, Detection, Limits
from t2ialign_shapes import captions, detector, judge
from t2ialign_shapes.captions import COLORS, SHAPES, Caption
from t2ialign_shapes.detections import Detections
from t2ialign_shapes.plugin import ShapesGenEvalConfig, ShapesRewardConfig
from t2ialign_shapes.world import SIZE


class ShapesExact(t2ialign.Reward):
    """1.0 where the picture shows everything that its prompt says, else 0.0."""

    differentiable = False
    Config = ShapesRewardConfig

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Judge images against their prompts.

        Args:
            images: float [B, 3, 32, 32] in [0, 1].
            prompts: captions of the shapes world.

        Returns:
            float32 [B], 0 or 1.

        Raises:
            UsageError: the images or a prompt are not of the shapes world.
        """
        wanted = judge.require(_captions(images, prompts), images.device)
        return judge.satisfied(_found(images), wanted).float()


class ShapesGraded(t2ialign.Reward):
    """Partial credit in [0, 1] for objects, shapes, colours and relation; see `judge.grade`."""

    differentiable = False
    Config = ShapesRewardConfig

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Grade images against their prompts: float32 [B] in [0, 1]; see `ShapesExact.score`."""
        wanted = judge.require(_captions(images, prompts), images.device)
        return judge.grade(_found(images), wanted)


class ShapesGenEval(RuledReward):
    """GenEval's rules on the exact detector: by the prompt's metadata, whatever its text says."""

    Config = ShapesGenEvalConfig

    def __init__(self, config: ShapesGenEvalConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self.limits = Limits(max_objects=config.max_objects, position_threshold=config.position_threshold)

    def look(self, images: Tensor, asked: Sequence[Asked]) -> list[Look]:
        _check_size(images)
        found, boxes = detector.locate(images)
        return [_seen(*row) for row in zip(found.present, found.shapes, found.colors, boxes, strict=True)]


def _seen(present: Tensor, shapes: Tensor, colors: Tensor, boxes: Tensor) -> Look:
    """One image's slots as detections, which are certain, by shape."""
    detections: dict[str, list[Detection]] = {shape: [] for shape in SHAPES}
    names: dict[str, list[str]] = {shape: [] for shape in SHAPES}
    for slot in present.nonzero()[:, 0].tolist():
        shape = SHAPES[shapes[slot]]
        x0, y0, x1, y1 = map(float, boxes[slot].tolist())
        detections[shape].append(Detection((x0, y0, x1, y1), 1.0))
        names[shape].append(COLORS[colors[slot]])
    return detections, lambda shape, index: names[shape][index]


_last: tuple[ReferenceType[Tensor], int, Detections] | None = None


def _found(images: Tensor) -> Detections:
    """What the images show; rewards of the very same tensor, unchanged, look once."""
    global _last
    if images.is_inference():  # such tensors do not count their changes
        return detector.detect(images)
    last = _last
    if last is None or last[0]() is not images or last[1] != images._version:
        _last = last = (ref(images), images._version, detector.detect(images))
    return last[2]


def _captions(images: Tensor, prompts: Sequence[str]) -> list[Caption]:
    """Read the prompts; refuse what the exact judge cannot judge."""
    _check_size(images)
    try:
        return [captions.parse(prompt) for prompt in prompts]
    except ValueError as error:
        raise t2ialign.UsageError(
            f"the shapes rewards judge only their own prompts: {error}; see"
            " pkg:t2ialign_shapes/prompts/train.txt for examples"
        ) from error


def _check_size(images: Tensor) -> None:
    if images.shape[1:] != (3, SIZE, SIZE):
        size = "x".join(map(str, images.shape[1:]))
        raise t2ialign.UsageError(
            f"the shapes rewards judge images of 3x{SIZE}x{SIZE}, not {size}; use the shapes"
            " checkpoints or another reward"
        )
