"""One process at a time writes a run directory."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from t2ialign.errors import UsageError
from t2ialign.storage import files


@contextmanager
def owned(run: Path) -> Iterator[None]:
    """Inside, this process owns a run directory. The system frees it when the process dies, however it dies.

    Raises:
        UsageError: another process owns it; names host, process and since when.
    """
    lock, owner = FileLock(run / ".lock"), run / ".owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{run} is in use by {_described(owner)}; wait for it, or stop it first") from None
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        files.write_json(owner, {"host": socket.gethostname(), "pid": os.getpid(), "started": started})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def is_owned(run: Path) -> bool:
    """Whether a process is at a run directory now."""
    if not (run / ".owner.json").exists():
        return False
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # not ours to lock
        return False
    lock.release()
    return False


def _described(owner: Path) -> str:
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}, since {found['started']}"
    except (OSError, ValueError, KeyError):  # it is just starting or just ending
        return "another process"
