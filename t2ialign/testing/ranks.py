"""Real ranks, forked from this process: what torchrun does, without the seconds that starting torch takes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist


@dataclass(frozen=True)
class Ended:
    """How the ranks ended: exit codes (negative: the signal that killed one), what each wrote, seconds."""

    codes: list[int]
    texts: list[str]
    seconds: float

    @property
    def text(self) -> str:
        return "".join(self.texts)


def ranks(size: int, work: Callable[[int], object], folder: Path, limit: float = 60.0, grace: float = 30.0) -> Ended:
    """Run ``work(rank)`` in ``size`` processes that find each other as torchrun's workers do. Not on Windows.

    As torchrun does, the parent keeps the store; once a rank ends badly the others get SIGTERM, and SIGKILL after
    ``grace`` seconds.

    Args:
        folder: where ``rank0.txt`` and so on are written.

    Raises:
        TimeoutError: they did not end within ``limit`` seconds; they are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=limit))
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"rank{rank}.txt" for rank in range(size)]
    fork, started = multiprocessing.get_context("fork"), time.monotonic()
    workers = [
        fork.Process(target=_worker, args=(rank, size, port, work, file), daemon=True)
        for rank, file in enumerate(files)
    ]
    for worker in workers:
        worker.start()
    signalled = 0.0
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.02)
        now = time.monotonic()
        if not signalled and any(worker.exitcode for worker in workers):
            signalled = now
            for worker in workers:
                worker.terminate()
        if (signalled and now - signalled > grace) or now - started > limit:
            for worker in workers:
                worker.kill()
            if now - started > limit:
                raise TimeoutError("a rank hangs:\n" + "\n".join(file.read_text() for file in files))
    del store
    texts = [file.read_text() for file in files]
    return Ended([worker.exitcode or 0 for worker in workers], texts, time.monotonic() - started)


def _worker(rank: int, size: int, port: int, work: Callable[[int], object], file: Path) -> None:
    out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(out, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    work(rank)
