"""Which sizes of images a checkpoint can draw, by its configurations alone. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from t2ialign.errors import UsageError
from t2ialign.sizes import height_width, off_grid, shown

#: Short -> long sides of the buckets at 1024 pixels (SDXL, arXiv 2307.01952, appendix I); PixArt's and Sana's are
#: these, at 512 half as large and at 2048 twice.
BUCKETS = {
    512: (1856, 1920, 1984, 2048),
    576: (1664, 1728, 1792),
    640: (1536, 1600),
    704: (1344, 1408, 1472),
    768: (1280, 1344),
    832: (1152, 1216),
    896: (1088, 1152),
    960: (1024, 1088),
    1024: (1024,),
}
#: Pixels along a tile of decoders whose configuration does not say.
_TILES = {"AutoencoderDC": 512, "AutoencoderKLQwenImage": 256}


def trained_side(vae: Mapping[str, Any], network: Mapping[str, Any]) -> int | None:
    """Pixels along the square that a network was trained at, by its configuration; None where it does not say."""
    cells = network.get("sample_size")
    return cells * vae_factor(vae) if isinstance(cells, int) else None


def tile_side(vae: Mapping[str, Any]) -> int | None:
    """Images up to this are one tile to a decoder; None where there is no telling."""
    if (name := vae.get("_class_name")) != "AutoencoderKL":
        return _TILES.get(str(name))
    size = vae.get("sample_size", 32)
    return size if isinstance(size, int) else max(size)


def off_bucket(size: int | Sequence[int], side: int) -> str:
    """The bucket nearest to a size that is none, of a network trained at ``side``; "" where it is one, or may be."""
    if side not in (512, 1024, 2048):
        return ""
    height, width = height_width(size)
    short, long = (1024 * edge // side for edge in sorted((height, width)))
    if long in BUCKETS.get(short, ()):
        return ""
    found = [(low, high) for low, highs in BUCKETS.items() for high in highs]
    low, high = min(found, key=lambda edges: abs(math.log(edges[0] / edges[1] * long / short)))
    near = (low * side // 1024, high * side // 1024)
    return shown(near if height <= width else near[::-1])


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
