"""Paths as people write them: ``~``, any script, any length; what can be none is told, not raised from deep below."""

from __future__ import annotations

import os
from pathlib import Path

#: Most bytes of one file or folder name, on the usual file systems.
LONGEST_NAME = 255


def path(text: str) -> Path:
    """A path, ``~`` and ``~user`` resolved.

    Raises:
        ValueError: no file system takes it; says why.
    """
    if "\0" in text:
        raise ValueError("holds a zero byte, which no path can")
    try:
        found = Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user '{text.split('/')[0].removeprefix('~')[:40]}' on this machine") from None
    try:
        longest = max((len(os.fsencode(part)) for part in found.parts), default=0)
    except UnicodeEncodeError:
        raise ValueError("holds a character that no file name can") from None
    if longest > LONGEST_NAME:
        raise ValueError(f"has a name of {longest} bytes; file systems take {LONGEST_NAME}")
    return found


def existing(text: str, base: Path | None = None) -> Path | None:
    """The file or folder of a reference, below ``base`` first; None where there is none, or can be none."""
    try:
        wanted = path(text)
        for candidate in ((base / wanted) if base else None, wanted):
            if candidate is not None and candidate.exists():
                return candidate.resolve()
    except (OSError, ValueError):
        return None
    return None


def unwritable(folder: Path) -> str:
    """Why nothing can be made inside a folder, which need not exist yet; empty where nothing is in the way."""
    for place in (folder, *folder.absolute().parents):
        if place.is_dir():
            return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"
        if place.exists() or place.is_symlink():
            return f"{place} is no folder"
    return ""
