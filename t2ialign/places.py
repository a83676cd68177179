"""Paths as people write them: ``~``, any script, any length; what can be none is told, not raised from deep below."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

#: Left in folders by systems, beside hidden files (``.DS_Store``, and ``._name`` for every file on foreign disks).
_STREWN = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"}
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


def strewn(name: str) -> bool:
    """Is this the name of a file or folder that nobody made by hand: hidden, or an operating system's?"""
    return name.startswith(".") or name.lower() in _STREWN


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """Files and folders that match, sorted, without those that operating systems strew."""
    return [found for found in sorted(folder.glob(pattern)) if not any(map(strewn, found.relative_to(folder).parts))]


def unwritable_file(file: Path) -> str:
    """Why a file cannot be made in a folder that exists; empty where nothing is in the way."""
    if file.is_dir():
        return "is a folder"
    parent = file.absolute().parent
    return unwritable(parent) if parent.is_dir() else "no such folder"


def unwritable(folder: Path) -> str:
    """Why nothing can be made inside a folder, which need not exist yet; empty where nothing is in the way."""
    for place in (folder, *folder.absolute().parents):
        if place.is_dir():
            try:  # what access() tells is not true of root, of quotas and of network disks
                Path(tempfile.mkdtemp(prefix=".t2ialign-", dir=place)).rmdir()
            except OSError:
                return f"{place} cannot be written"
            return ""
        if place.exists() or place.is_symlink():
            return f"{place} is no folder"
    return ""
