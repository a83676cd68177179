"""Detectors of transformers behind one call: which objects of some classes does an image show, and where."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    GroundingDinoForObjectDetection,
    Mask2FormerForUniversalSegmentation,
    Owlv2ForObjectDetection,
)

from t2ialign import checkpoints
from t2ialign.errors import UsageError
from t2ialign_judges.rules import Box, Detection
from t2ialign_rewards import weights

#: Where GenEval's names differ from COCO's.
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
#: Segments that are looked at: the best pairs of query and class, as in mmdetection's test configuration.
MOST_SEGMENTS = 100


class Object(NamedTuple):
    """A detection, with its pixels (H, W) where the detector gives them."""

    detection: Detection
    mask: Tensor | None = None


class Detector(ABC):
    """A detector on a device, called with one image.

    Args:
        folder: in the transformers format.
        least: confidence below which nothing is reported.
        text_threshold: for Grounding DINO.
    """

    model_class: ClassVar[Any]
    #: Default thresholds: usual, for counting, and of overlap.
    defaults: ClassVar[tuple[float, float, float]]

    def __init__(self, folder: Path, dtype: str, device: torch.device, least: float, text_threshold: float) -> None:
        settings = AutoConfig.from_pretrained(folder)
        model = weights.from_folder(self.model_class, settings, folder, dtype)
        self.model = model.eval().requires_grad_(False).to(device)
        self.processor = self.load_processor(folder)
        self.least, self.text_threshold = least, text_threshold

    def load_processor(self, folder: Path) -> Any:
        return AutoProcessor.from_pretrained(folder)

    @abstractmethod
    def __call__(self, image: Image.Image, classes: Sequence[str]) -> dict[str, list[Object]]:
        """Class -> its objects; classes that the detector does not know have none."""

    def forward(self, inputs: Any) -> Any:
        inputs = inputs.to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return self.model(**inputs)


class Mask2Former(Detector):
    """Instance segmentation with a fixed list of classes, scored as mmdetection does for the benchmark."""

    model_class = Mask2FormerForUniversalSegmentation
    defaults = (0.3, 0.9, 1.0)

    def load_processor(self, folder: Path) -> Any:
        return AutoImageProcessor.from_pretrained(folder)

    def __call__(self, image: Image.Image, classes: Sequence[str]) -> dict[str, list[Object]]:
        output = self.forward(self.processor(images=image, return_tensors="pt"))
        labels = self.model.config.id2label
        names = [RENAMED.get(labels[number], labels[number]) for number in range(len(labels))]
        return segments(
            output.class_queries_logits[0].float(),
            output.masks_queries_logits[0].float(),
            (image.height, image.width),
            {names.index(name): name for name in classes if name in names},
            self.least,
        )


def segments(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], wanted: dict[int, str], least: float
) -> dict[str, list[Object]]:
    """The objects of Mask2Former's outputs.

    A segment's confidence is its class probability times the mean of the mask's probabilities inside the mask. One mask
    may appear under several classes.

    Args:
        class_logits: (Q, C + 1), the last column for "nothing".
        mask_logits: (Q, h, w).
        size: of the image, (H, W).
        wanted: column -> class.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    best = probabilities.flatten().topk(min(MOST_SEGMENTS, probabilities.numel()))
    found: dict[str, list[Object]] = {name: [] for name in wanted.values()}
    for probability, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        query, column = divmod(place, probabilities.shape[1])
        if column not in wanted or probability <= least:  # a mask only makes it less
            continue
        logits = F.interpolate(mask_logits[query][None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        mask = logits > 0
        inside = (logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        found[wanted[column]].append(Object(Detection(box_of(mask), probability * inside.item()), mask))
    return found


def box_of(mask: Tensor) -> Box:
    """The box around a mask (H, W), its far edges beyond the last pixel; zeros for an empty one."""
    ys, xs = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(xs):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1))


class Owlv2(Detector):
    """Open-vocabulary detection: each query takes the best of the classes that are asked for."""

    model_class = Owlv2ForObjectDetection
    defaults = (0.1, 0.1, 0.5)

    def __call__(self, image: Image.Image, classes: Sequence[str]) -> dict[str, list[Object]]:
        texts = [[f"a photo of a {name}" for name in classes]]
        output = self.forward(self.processor(text=texts, images=image, return_tensors="pt"))
        (result,) = self.processor.image_processor.post_process_object_detection(
            output, threshold=self.least, target_sizes=[(image.height, image.width)]
        )
        return _by_class(classes, [classes[label] for label in result["labels"].tolist()], result)


class GroundingDino(Detector):
    """Open-vocabulary detection by phrases; what is read as no class that was asked for is left out."""

    model_class = GroundingDinoForObjectDetection
    defaults = (0.25, 0.25, 0.5)

    def __call__(self, image: Image.Image, classes: Sequence[str]) -> dict[str, list[Object]]:
        text = " ".join(f"{name.lower()}." for name in classes)
        inputs = self.processor(text=text, images=image, return_tensors="pt")
        ids = inputs["input_ids"]
        output = self.forward(inputs)
        (result,) = self.processor.post_process_grounded_object_detection(
            output,
            ids,
            threshold=self.least,
            text_threshold=self.text_threshold,
            target_sizes=[(image.height, image.width)],
        )
        return _by_class(classes, result["text_labels"], result)


def _by_class(classes: Sequence[str], labels: Sequence[str], result: Any) -> dict[str, list[Object]]:
    named = {name.lower(): name for name in classes}
    found: dict[str, list[Object]] = {name: [] for name in classes}
    for label, box, score in zip(labels, result["boxes"].tolist(), result["scores"].tolist(), strict=True):
        if name := named.get(label.strip().lower()):
            found[name].append(Object(Detection(tuple(box), score)))
    return found


KINDS: dict[str, type[Detector]] = {"mask2former": Mask2Former, "owlv2": Owlv2, "grounding-dino": GroundingDino}


def kind_of(folder: Path) -> type[Detector]:
    """Which detector a folder holds.

    Raises:
        UsageError: none of these.
    """
    checkpoints.check_model(folder)
    name = AutoConfig.from_pretrained(folder).model_type
    if name not in KINDS:
        raise UsageError(f"{folder} holds a '{name}'; detectors are {', '.join(KINDS)}")
    return KINDS[name]
