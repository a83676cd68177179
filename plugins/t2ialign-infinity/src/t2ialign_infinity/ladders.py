"""Scale ladders: the (height, width) in tokens of every scale, by aspect ratio. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from t2ialign import UsageError, height_width

Ladder = tuple[tuple[int, int], ...]

#: Scales that each pixel budget uses: prefixes of the 1M ladder.
SCALES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}

#: Pixels along an axis for every cell of the last scale, in all released models.
CELL = 16

#: Height / width -> the 1M ladder, as in released checkpoints.
_TALL = {
    1.000: "1,1 2,2 4,4 6,6 8,8 12,12 16,16 20,20 24,24 32,32 40,40 48,48 64,64",
    1.250: "1,1 2,2 3,3 5,4 10,8 15,12 20,16 25,20 30,24 35,28 45,36 55,44 70,56",
    1.333: "1,1 2,2 4,3 8,6 12,9 16,12 20,15 24,18 28,21 36,27 48,36 60,45 72,54",
    1.500: "1,1 2,2 3,2 6,4 9,6 15,10 21,14 27,18 33,22 39,26 48,32 63,42 78,52",
    1.750: "1,1 2,2 3,3 7,4 11,6 14,8 21,12 28,16 35,20 42,24 56,32 70,40 84,48",
    2.000: "1,1 2,2 4,2 6,3 10,5 16,8 22,11 30,15 38,19 46,23 60,30 74,37 90,45",
    2.500: "1,1 2,2 5,2 10,4 15,6 20,8 25,10 30,12 40,16 50,20 65,26 80,32 100,40",
    3.000: "1,1 2,2 6,2 9,3 15,5 21,7 27,9 36,12 45,15 54,18 72,24 90,30 111,37",
}


def _parse(text: str) -> Ladder:
    pairs = (pair.split(",") for pair in text.split())
    return tuple((int(height), int(width)) for height, width in pairs)


LADDERS: dict[float, Ladder] = {ratio: _parse(text) for ratio, text in _TALL.items()}
LADDERS |= {
    int(1000 / ratio) / 1000: tuple((width, height) for height, width in ladder)
    for ratio, ladder in list(LADDERS.items())
}


def nearest(aspect_ratio: float) -> Ladder:
    """The 1M ladder whose height / width is nearest."""
    return LADDERS[min(LADDERS, key=lambda ratio: abs(ratio - aspect_ratio))]


def sizes(count: int, cell: int = CELL) -> dict[tuple[int, int], Ladder]:
    """(height, width) in pixels after the first ``count`` scales -> the 1M ladder, for every trained aspect ratio."""
    return {(cell * full[count - 1][0], cell * full[count - 1][1]): full for full in LADDERS.values()}


def untrained(size: int | Sequence[int], counts: Collection[int] = SCALES.values(), cell: int = CELL) -> str:
    """Why there is no ladder of one of ``counts`` scales for images of this size; names those there are, or ""."""
    wanted = height_width(size)
    if any(wanted in sizes(count, cell) for count in counts):
        return ""
    area = wanted[0] * wanted[1]
    nearest_count = min(counts, key=lambda count: abs((cell * LADDERS[1.0][count - 1][0]) ** 2 - area))
    tall = [f"[{height}, {width}]" for height, width in sorted(sizes(nearest_count, cell)) if height >= width]
    return f"is no trained size; near it are {', '.join(tall)}, and these with height and width swapped"


def of_size(size: int | Sequence[int], counts: Collection[int], cell: int) -> tuple[Ladder, int]:
    """The 1M ladder whose first scales, ``counts`` of them, end in an image of this size, and their number.

    Raises:
        UsageError: no trained aspect ratio has it.
    """
    if why := untrained(size, counts, cell):
        raise UsageError(f"backend.image_size {why}")
    wanted = height_width(size)
    return next((sizes(count, cell)[wanted], count) for count in counts if wanted in sizes(count, cell))
