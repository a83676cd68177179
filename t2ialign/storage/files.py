"""Files that are either whole or not there: written to a temporary name, synced, renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from t2ialign.errors import UsageError

#: Ends the name of a folder that is just being replaced.
OLD = ".old.tmp"
#: Files of a folder that are synced at the same time: each waits for the disk, which serves many as fast as one.
SYNCS = 8


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """A temporary name that becomes ``path`` when the block ends well, and of which nothing stays otherwise."""
    name = os.fsencode(path.name)[:200].decode(errors="ignore")  # file systems take 255 bytes
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` in one step, unsynced: what a killed run draws again."""
    with replacing(path, sync=False) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by strict JSON (NaN is refused)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a file that we wrote.

    Raises:
        UsageError: it was damaged or taken away since.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


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
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}{OLD}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        with ThreadPoolExecutor(SYNCS) as pool:
            list(pool.map(_sync, [file for file in temporary.rglob("*") if file.is_file()]))
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(file: Path) -> None:
    with file.open("rb+") as stream:  # Windows syncs only what may be written
        os.fsync(stream.fileno())


def clean(folder: Path) -> None:
    """Take away what processes that are dead now left half-written below a folder, and put back what they replaced."""
    for left in [found for found in folder.rglob(".*.tmp") if found.exists()]:
        name, number = re.fullmatch(r"\.(.*?)(?:\.(\d+))?(?:\.old)?\.tmp", left.name, re.DOTALL).group(1, 2)  # type: ignore[union-attr]
        if number and int(number) != os.getpid() and _alive(int(number)):
            continue
        if left.name.endswith(OLD) and not left.with_name(name).exists():
            left.rename(left.with_name(name))
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):  # Windows: somebody has it open
                left.unlink()


def _alive(process: int) -> bool:
    if sys.platform == "win32":  # where a file that is open cannot be deleted, and this would end the process
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
