"""Files that are either whole or not there: written to a temporary name, synced, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` in one step, unsynced: what a killed run draws again."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by strict JSON (NaN is refused)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """One value a line; a torn last line is left out, and a missing file has no lines."""
    if not path.exists():
        return []
    lines = []
    with path.open(encoding="utf-8") as stream:
        for text in stream:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # the process died while it appended this line
                break
    return lines


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` (replacing it) when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as stream:  # Windows syncs only what may be written
                    os.fsync(stream.fileno())
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
