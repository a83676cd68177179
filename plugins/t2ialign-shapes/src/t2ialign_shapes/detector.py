"""An exact object detector for the shapes world: no learned part, so nothing to be fooled.

1. Every pixel takes the nearest palette colour; the background is the more frequent of the two
   background colours.
2. Connected pixels of one object colour form a component; tiny and elongated ones are dropped.
3. Inside the component, widened by one pixel, the *soft coverage* says how far a pixel has gone
   from the background colour to the object colour.
4. The shape is the template of equal area and centroid with the best soft overlap.

Hard masks would do on clean renders; the soft coverage is what keeps the shapes of slightly blurry
generated objects apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from t2ialign_shapes import judge
from t2ialign_shapes.captions import COLORS, Caption
from t2ialign_shapes.detections import MAX_DETECTIONS, Detections
from t2ialign_shapes.world import BACKGROUND_RGB, OBJECT_RGB, SIGNED_DISTANCES, SIZE, pixel_grid

MIN_AREA = 10
MAX_ASPECT = 2.2
MIN_OVERLAP = 0.6
EDGE_SLOPE = 0.8
"""Coverage per pixel at a template's edge; a little softer than a clean render's 1."""


def check(images: Tensor, captions: Sequence[Caption]) -> Tensor:
    """Whether each image shows exactly what its caption says: bool [B]; see `judge.satisfied`."""
    return judge.satisfied(detect(images), judge.require(captions, images.device))


def graded(images: Tensor, captions: Sequence[Caption]) -> Tensor:
    """How far each image shows what its caption says: float32 [B] in [0, 1]; see `judge.grade`."""
    return judge.grade(detect(images), judge.require(captions, images.device))


def detect(images: Tensor) -> Detections:
    """Find the objects of each image; an image's result does not depend on its batch.

    Args:
        images: float [B, 3, SIZE, SIZE] in [0, 1], any device.
    """
    return locate(images)[0]


@torch.no_grad()
def locate(images: Tensor) -> tuple[Detections, Tensor]:
    """As `detect`, with the objects' boxes: int64 [B, K, 4], x0, y0, and x1, y1 beyond the last pixel."""
    images = images.float()
    palette = torch.cat([OBJECT_RGB, BACKGROUND_RGB]).to(images.device)
    distance = (images[:, None] - palette[:, :, None, None]).square().sum(2)  # [B, 8, H, W]
    color = distance.min(1).indices  # as argmin, whose loop over a middle axis takes eight times as long
    background = _background(color)
    component = _components(color, color < len(COLORS))
    roots, area = _largest(component)
    masks = component[:, None] == roots[:, :, None, None]  # [B, K, H, W]
    boxes = _boxes(masks)
    present = (area >= MIN_AREA) & (_aspect(boxes) <= MAX_ASPECT)

    # Only the slots in use are worth templates: N masks in all.
    row, slot = present.nonzero(as_tuple=True)
    mask = masks[row, slot]
    object_color = color.flatten(1)[row, roots[row, slot]]
    coverage = _coverage(images[row], mask, palette[object_color], _rgb(background)[row])
    shape, center, overlap = _match_templates(coverage)

    detections = Detections(
        present=present,
        shapes=torch.zeros_like(roots),
        colors=torch.zeros_like(roots),
        centers=images.new_zeros(*roots.shape, 2),
        background=background,
    )
    detections.present[row, slot] = overlap >= MIN_OVERLAP
    detections.shapes[row, slot] = shape
    detections.colors[row, slot] = object_color
    detections.centers[row, slot] = center
    return detections, boxes


def _background(color: Tensor) -> Tensor:
    """The more frequent background class per image: [B, H, W] -> int64 [B]."""
    black, white = ((color == len(COLORS) + k).sum((1, 2)) for k in (0, 1))
    return (white > black).long()


def _rgb(background: Tensor) -> Tensor:
    return BACKGROUND_RGB.to(background.device)[background]


def _components(color: Tensor, foreground: Tensor) -> Tensor:
    """Label 4-connected pixels of equal colour by their largest pixel index; others are -1.

    Labels spread to equal neighbours until nothing changes, and take short cuts: a label is itself
    a pixel of the component, so a pixel may adopt the label found there.
    """
    index = torch.arange(SIZE * SIZE, device=color.device).view(SIZE, SIZE)
    label = torch.where(foreground, index, -1)
    same_column = color[:, 1:] == color[:, :-1]
    same_row = color[:, :, 1:] == color[:, :, :-1]
    while True:
        joined = _spread(_spread(label, same_column, dim=1), same_row, dim=2)
        flat = joined.flatten(1)
        joined = torch.where(flat < 0, -1, flat.gather(1, flat.clamp(min=0))).view_as(label)
        if torch.equal(joined, label):
            return label
        label = joined


def _spread(label: Tensor, same: Tensor, dim: int) -> Tensor:
    """Give both of every two neighbours along ``dim`` that are the same the larger label."""
    length = label.shape[dim] - 1
    first, second = label.narrow(dim, 0, length), label.narrow(dim, 1, length)
    larger = torch.where(same, torch.maximum(first, second), -1)
    edge = torch.full_like(label.narrow(dim, 0, 1), -1)
    from_next, from_previous = torch.cat([larger, edge], dim), torch.cat([edge, larger], dim)
    return torch.maximum(label, torch.maximum(from_next, from_previous))


def _largest(component: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and areas in pixels of the K largest components, int64 [B, K] each, zero area last."""
    flat = component.flatten(1)
    area = torch.zeros(len(flat), SIZE * SIZE + 1, dtype=torch.long, device=flat.device)
    area.scatter_add_(1, flat + 1, torch.ones_like(flat))
    # The label breaks ties, so that equal areas are ordered alike in every batch.
    order = area[:, 1:] * SIZE * SIZE + torch.arange(SIZE * SIZE, device=flat.device)
    roots = order.topk(MAX_DETECTIONS).indices
    return roots, area[:, 1:].gather(1, roots)


def _boxes(masks: Tensor) -> Tensor:
    """Each mask's bounding box, the far edges beyond its last pixel: bool [B, K, H, W] -> int64 [B, K, 4]."""
    index = torch.arange(SIZE, device=masks.device)
    hits = [masks.any(axis) for axis in (2, 3)]  # along x, along y
    first = [torch.where(hit, index, SIZE).amin(-1) for hit in hits]
    last = [torch.where(hit, index, -1).amax(-1) for hit in hits]
    return torch.stack([*first, *(edge + 1 for edge in last)], -1)


def _aspect(boxes: Tensor) -> Tensor:
    """Longer over shorter side of each box: int64 [B, K, 4] -> float [B, K]."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).float().unbind(-1)
    return torch.maximum(width / height, height / width)


def _coverage(images: Tensor, mask: Tensor, color: Tensor, background: Tensor) -> Tensor:
    """Share of the object's colour in each pixel: float [N, H, W] in [0, 1].

    Args:
        images: float [N, 3, H, W], the picture of each of N components.
        mask: bool [N, H, W], the component; its pixels count at least half.
        color, background: float [N, 3].
    """
    direction = color - background
    offset = images - background[:, :, None, None]
    share = (offset * direction[:, :, None, None]).sum(1) / direction.square().sum(1)[:, None, None]
    near = max_pool2d(mask[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
    share = share.clamp(0, 1) * near
    return torch.where(mask, share.clamp(min=0.5), share)


def _match_templates(coverage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best shape for each soft mask [N, H, W]: shape [N], centre [N, 2], overlap [N] in [0, 1]."""
    x, y = pixel_grid(coverage.device)
    area = coverage.sum((1, 2))
    center_x = (coverage * x).sum((1, 2)) / area
    center_y = (coverage * y).sum((1, 2)) / area
    # Radius of the circle, the square and the triangle of this area; only the triangle's centroid
    # lies off its centre.
    radius = torch.stack([(area / torch.pi).sqrt(), area.sqrt() / 1.78, (area / 1.8).sqrt()], 1)
    center_y = center_y[:, None] - radius * torch.tensor([0.0, 0.0, 0.2], device=radius.device)
    dx = x - center_x[:, None, None]
    overlap = []
    for k, distance in enumerate(SIGNED_DISTANCES):
        dy = y - center_y[:, k, None, None]
        template = (0.5 - EDGE_SLOPE * distance(dx, dy, radius[:, k, None, None])).clamp(0, 1)
        shared = torch.minimum(template, coverage).sum((1, 2))
        overlap.append(shared / torch.maximum(template, coverage).sum((1, 2)))
    best, shape = torch.stack(overlap, 1).max(1)
    own_center_y = center_y.gather(1, shape[:, None])[:, 0]
    return shape, torch.stack([center_x, own_center_y], -1), best
