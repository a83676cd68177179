"""What others wrote: files opened with limits, and text shown without harm. No torch."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

#: Bytes that are read at most: of a JSON file or a safetensors header, and of a file of prompts.
MOST_JSON, MOST_TEXT = 2**26, 2**30
#: More than any network has.
MOST_LAYERS = 10_000
_COUNT = re.compile("layer|depth|block")
#: Bits of the types that safetensors files may hold.
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
#: What terminals obey rather than show, and what turns the direction of writing; line ends and tabs may stay.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object, most: int | None = None) -> str:
    """Text of others as a terminal, a log or a page may have it: escape sequences, control characters, halves of
    surrogate pairs and marks of direction become visible codes.

    Args:
        most: characters that stay, with "…" for the rest.
    """
    words = _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))
    return words if most is None or len(words) <= most else f"{words[: most - 1]}…"


def check_file(path: Path, most: int | None = None) -> int:
    """Before a file is opened: is it one (a pipe would wait for ever), and of a size that can be meant?

    Returns:
        Its bytes.

    Raises:
        OSError: it is not there.
        ValueError: it is none, or too large; a half sentence without its name.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("is a folder" if path.is_dir() else "is no regular file")
    if most is not None and size > most:
        raise ValueError(f"has {size:,} bytes, more than the {most:,} that are read")
    return size


def read(path: Path, most: int = MOST_TEXT) -> bytes:
    """A file's bytes; raises as ``check_file``."""
    check_file(path, most)
    return path.read_bytes()


def parse_json(text: str | bytes, finite: bool = False) -> Any:
    """A JSON value.

    Args:
        finite: NaN and infinities, which many writers put there, become None.

    Raises:
        ValueError: no JSON, or nested and numbered beyond what can be read.
    """
    number = _finite if finite else None
    try:
        return json.loads(text, parse_constant=number, parse_float=number)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def _finite(word: str) -> float | None:
    return number if math.isfinite(number := float(word)) else None


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        OSError: it is not there.
        ValueError: it is none; a half sentence without its name.
    """
    text = read(path, MOST_JSON)
    try:
        value = parse_json(text.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"is no JSON: {shown(error, 200)}") from error
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    return value


def model_settings(path: Path) -> dict[str, Any]:
    """A model's ``config.json``, if a library can build that model without code of others and within this life.

    Raises:
        OSError: it is not there.
        ValueError: it is none, names classes of its own, or more layers than any model has; a half sentence.
    """
    settings = read_object(path)
    if own := settings.get("auto_map"):
        names = own.values() if isinstance(own, dict) else [own]
        raise ValueError(
            f"wants code of its own, which is never run: auto_map names {shown(next(iter(names), ''), 100)}"
        )
    if key := _too_many(settings):
        raise ValueError(f"tells of more than {MOST_LAYERS:,} layers: {key}")
    return settings


def _too_many(settings: dict[str, Any]) -> str:
    """The first number of layers that no model has, at any depth: "vision_config.num_layers = 9999999999"."""
    for key, value in settings.items():
        if isinstance(value, dict):
            if found := _too_many(value):
                return f"{shown(key, 40)}.{found}"
        elif _COUNT.search(key):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and number > MOST_LAYERS:
                    return f"{shown(key, 40)} = {shown(number, 40)}"
    return ""


def tensor_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, which fits to the file's length: name -> dtype, shape, data_offsets, and
    ``__metadata__`` where there is some (texts to texts).

    Raises:
        OSError: it is not there.
        ValueError: it is none, or cut; a half sentence without its name.
    """
    size = check_file(path)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_JSON):
            raise ValueError("is no safetensors file, or was cut in its header")
        try:
            header = parse_json(stream.read(length))
            ends = [_end(entry) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError("has a damaged safetensors header") from error
    if not _texts(header.get("__metadata__", {})):
        raise ValueError("has a damaged safetensors header")
    if size != (told := 8 + length + max(ends, default=0)):
        raise ValueError(f"was cut or damaged: it has {size:,} bytes, and its header tells of {told:,}")
    return header


def _end(entry: dict[str, Any]) -> int:
    """Where a tensor ends; raises whatever Python raises if its entry contradicts itself."""
    shape, (start, end), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError
    bits = _BITS.get(dtype) or 8 * int(re.sub(r"\D.*", "", dtype[2 if dtype.startswith("BF") else 1 :])) // 8
    if math.prod(shape) * bits != 8 * (end - start):
        raise ValueError
    return end


def _texts(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(word, str) for word in (*metadata, *metadata.values()))
