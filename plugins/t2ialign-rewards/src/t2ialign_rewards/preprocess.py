"""Images in [0, 1] to a vision model's input, on tensors and differentiable.

The 'crop' mode is the standard CLIP transform and equals torchvision's tensor path to the bit, gradient included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from t2ialign_rewards.config import Interpolation, Resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Tensor, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Tensor:
    """Antialiased resize to (height, width); bicubic overshoot beyond [0, 1] is kept."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode=interpolation, align_corners=False, antialias=True)


def to_square(images: Tensor, size: int, mode: Resize = "crop", interpolation: Interpolation = "bicubic") -> Tensor:
    """Bring images of any aspect to (B, 3, size, size).

    Args:
        images: float (B, 3, H, W).
        size: side of the square in pixels.
        mode: 'crop': the shorter side to ``size``, the longer cut at the centre; 'letterbox': the longer side to
            ``size``, zeros (black) around; 'stretch': both sides, whatever the aspect.
    """
    height, width = images.shape[-2:]
    short, long = min(height, width), max(height, width)
    match mode:
        case "crop":
            # Truncated, and the offset rounded half to even, as torchvision does.
            images = resize(images, (size * height // short, size * width // short), interpolation)
            top, left = (round((side - size) / 2) for side in images.shape[-2:])
            return images[..., top : top + size, left : left + size]
        case "letterbox":
            inner = (max(1, round(height * size / long)), max(1, round(width * size / long)))
            images = resize(images, inner, interpolation)
            top, left = ((size - side) // 2 for side in inner)
            return F.pad(images, (left, size - inner[1] - left, top, size - inner[0] - top))
        case "stretch":
            return resize(images, (size, size), interpolation)


@dataclass(frozen=True)
class Preprocess:
    """From images to one model's pixel values.

    Attributes:
        size: side of the model's input in pixels.
        mean, std: per channel, on the [0, 1] scale.
    """

    size: int
    mode: Resize = "crop"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __call__(self, images: Tensor) -> Tensor:
        """float (B, 3, H, W) in [0, 1] -> float32 (B, 3, size, size), normalised."""
        pixels = to_square(images.float(), self.size, self.mode, self.interpolation)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def channel_statistics(folder: Path) -> dict[str, tuple[float, ...]]:
    """Mean and std that a model folder's preprocessor_config.json gives; CLIP's own where it has none."""
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {
        "mean": tuple(settings.get("image_mean", CLIP_MEAN)),
        "std": tuple(settings.get("image_std", CLIP_STD)),
    }
