"""Real ranks, forked from the test: what torchrun does, without the seconds that starting Python and torch takes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from t2ialign import cli


@dataclass(frozen=True)
class Ended:
    """How the ranks ended: exit codes (negative: the signal that killed it), what each wrote, seconds."""

    codes: list[int]
    texts: list[str]
    seconds: float

    @property
    def text(self) -> str:
        return "".join(self.texts)


def ranks(size: int, work: Callable[[int], object], folder: Path, limit: float = 60.0, grace: float = 30.0) -> Ended:
    """Run ``work(rank)`` in ``size`` processes that find each other as torchrun's workers do.

    As torchrun does, the parent keeps the store; the first rank that ends badly has the others signalled, and killed
    after ``grace`` seconds.

    Raises:
        TimeoutError: they did not end within ``limit`` seconds; they are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=limit))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    running = {_fork(rank, size, port, work, folder / f"rank{rank}.txt"): rank for rank in range(size)}
    codes, signalled = [0] * size, 0.0
    while running:
        time.sleep(0.02)
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
        if any(codes) and not signalled:
            signalled = time.monotonic()
            for child in running:
                os.kill(child, signal.SIGTERM)
        if signalled and time.monotonic() - signalled > grace:
            for child in running:
                os.kill(child, signal.SIGKILL)
        if time.monotonic() - started > limit:
            for child in running:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            texts = "\n".join((folder / f"rank{rank}.txt").read_text() for rank in range(size))
            raise TimeoutError(f"ranks {sorted(running.values())} hang:\n{texts}")
    del store
    texts = [(folder / f"rank{rank}.txt").read_text() for rank in range(size)]
    return Ended(codes, texts, time.monotonic() - started)


def command(*words: str, before: Callable[[int], object] = lambda rank: None) -> Callable[[int], object]:
    """The command line as a rank's work; ``before`` may prepare an accident."""

    def work(rank: int) -> None:
        before(rank)
        sys.argv = ["t2ialign", *words]
        cli.main()

    return work


def _fork(rank: int, size: int, port: int, work: Callable[[int], object], file: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        work(rank)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
