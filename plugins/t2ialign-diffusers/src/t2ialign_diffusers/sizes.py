"""Which sizes of images a checkpoint can draw, by its configurations alone. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from t2ialign.errors import UsageError
from t2ialign.sizes import height_width, off_grid, shown


def vae_factor(vae: Mapping[str, Any]) -> int:
    """Pixels per latent cell along one axis, from an autoencoder's configuration; the usual 8 where it does not say."""
    if "temperal_downsample" in vae:  # an autoencoder of video
        return int(2 ** len(vae["temperal_downsample"]))
    blocks = vae.get("encoder_block_out_channels") or vae.get("block_out_channels") or (0,) * 4
    return 2 ** (len(blocks) - 1)


def sides(vae: Mapping[str, Any], network: Mapping[str, Any], packing: int) -> tuple[int, float]:
    """What height and width must be multiples of, and the most that either can be, in pixels.

    Args:
        vae: configuration of the autoencoder.
        network: of the trained network, with the cells of its patches and the reach of its position embeddings.
        packing: cells along an axis that the pipeline packs into one, before the network sees them.
    """
    multiple = vae_factor(vae) * packing * network.get("patch_size", 1)
    return multiple, network.get("pos_embed_max_size", math.inf) * multiple


def shapes(
    size: int | Sequence[int] | None,
    channels: int,
    cells: int | Sequence[int],
    factor: int,
    allowed: tuple[int, float],
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """(channels, rows, columns) of an image's latents, and its (height, width) in pixels.

    Args:
        size: ``backend.image_size``.
        channels: of the latents.
        cells: latent cells along each axis where no size is given.
        factor: pixels per latent cell.
        allowed: see ``sides``.

    Raises:
        UsageError: nothing of that size can be drawn.
    """
    if size is not None and (why := off_grid(size, *allowed)):
        raise UsageError(f"backend.image_size = {shown(size)}: {why}")
    height, width = height_width(size) if size is not None else (factor * side for side in height_width(cells))
    return (channels, height // factor, width // factor), (height, width)
