"""Folders of images, and which prompt each image belongs to. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from t2ialign import places
from t2ialign.errors import UsageError
from t2ialign.spec import prompts as prompt_files
from t2ialign.spec.prompts import Prompt
from t2ialign.spec.tables import lines_of, text_of

_KNOWN = (
    "png apng jpg jpeg jpe jfif webp bmp dib tif tiff gif avif avifs"
    " jp2 j2k jxl heic heif tga ppm pgm pnm ico qoi dds psd"
)
#: What people call pictures; those that cannot be read are listed, not passed over.
SUFFIXES = {f".{suffix}" for suffix in _KNOWN.split()}
#: Made beside images, by GenEval's script and our own: pictures of many.
GRIDS = {"grid.png"}
#: "0007.png", "0007_a-red-cube.png", "0007-2.png"
_NUMBERED = re.compile(r"(\d+)(?:[_\-. ].*)?")


def find_images(place: Path, pattern: str = "*", recursive: bool = False) -> list[Path]:
    """Image files in natural order (2 before 10); hidden files and folders are left out.

    A folder in GenEval's layout (``<index>/metadata.jsonl`` beside ``<index>/samples/``) gives its samples, not the
    grids beside them.

    Args:
        place: a folder, or one image.
        pattern: what file names must match.
        recursive: also look below the folder.

    Raises:
        UsageError: no such place, or no image in it.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UsageError(f"{place}: no such folder or image")
    if places.listed(place, "*/metadata.jsonl"):
        pattern = f"*/samples/{pattern}"
    elif recursive:
        pattern = f"**/{pattern}"
    try:
        found = places.listed(place, pattern)
    except (NotImplementedError, ValueError):
        raise UsageError(f"--pattern '{pattern}': must be what names below the folder match, such as '*.png'") from None
    images = [path for path in found if path.suffix.lower() in SUFFIXES and path.name not in GRIDS]
    if not images:
        below = "" if recursive else "; --recursive looks below it"
        raise UsageError(f"no image in {place} matches '{pattern}'{below}")
    return sorted(images, key=lambda path: _natural(path.relative_to(place).as_posix()))


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def match_prompts(images: Sequence[Path], prompt_file: Path, numbering: str | None = None) -> list[Prompt]:
    """One prompt of a file per image: by the number that all names start with, else by position.

    Numbers count from 0, as PartiPrompts' ``0007_slug.png`` and GenEval's ``00007/samples/`` do.

    Args:
        numbering: "prompt" counts prompts, "line" lines of a .txt; they differ where it has blank lines or comments.

    Raises:
        UsageError: a number beyond the file, numbers that could mean two things, or no numbers and another count
            than the prompts'.
    """
    prompts = prompt_files.read(prompt_file)
    if prompt_file.suffix.lower() == ".txt" and (numbering != "prompt") and any(_number(i) is not None for i in images):
        lines = [line.strip() for line in lines_of(text_of(prompt_file))]
        kept = [line for line in lines if line and not line.startswith("#")]
        if lines[: len(kept)] != kept and numbering is None:
            raise UsageError(
                f"{prompt_file} has blank lines or comments between prompts, so a number may count lines or prompts:"
                " give --numbering line or --numbering prompt"
            )
        if numbering == "line":
            prompts = [Prompt(line) for line in lines]
    seen: dict[int, Path] = {}
    for image in images:
        folder = image.parent.parent.parent if image.parent.name == "samples" else image.parent
        if (number := _number(image)) is not None and seen.setdefault(number, folder) != folder:
            raise UsageError(
                f"number {number} stands in {seen[number]} and in {folder}: which prompt is whose? Score one folder"
                " at a time, without --recursive"
            )
    numbers = [number for image in images if (number := _number(image)) is not None]
    if len(numbers) == len(images):
        for image, number in zip(images, numbers, strict=True):
            if number >= len(prompts):
                raise UsageError(f"{image} is number {number}, and {prompt_file} has prompts 0 to {len(prompts) - 1}")
        return [prompts[number] for number in numbers]
    if len(images) == len(prompts):
        return prompts
    unnumbered = next(image for image in images if _number(image) is None)
    raise UsageError(
        f"{len(images)} images and {len(prompts)} prompts in {prompt_file}: give one prompt per image, or file names"
        f" that start with the prompt's number ('{unnumbered.name}' does not)"
    )


def _number(image: Path) -> int | None:
    name = image.parent.parent.name if image.parent.name == "samples" else image.stem
    found = _NUMBERED.fullmatch(name)
    return int(found[1]) if found else None


def geneval_prompt(image: Path) -> str | None:
    """The prompt in GenEval's ``<index>/metadata.jsonl`` of an image in ``<index>/samples/``; None where there is none.

    Raises:
        UsageError: the file is there and has no prompt.
    """
    file = image.parent.parent / "metadata.jsonl"
    if image.parent.name != "samples" or not file.is_file():
        return None
    try:
        return prompt_files.read(file)[0]
    except UsageError as error:
        raise UsageError(f'{file}: the first line is no JSON object with a "prompt"') from error
