"""Several runs of a sweep at a time, each in a process of its own, which sees one device. No torch here."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from typing import Any, Literal

from t2ialign.run.display import Display
from t2ialign.run.failures import Interrupted
from t2ialign.storage import files
from t2ialign.sweep.one import result_of
from t2ialign.sweep.spec import Point, Sweep, SweepConfig

START: Literal["spawn", "fork"] = "spawn"  # a worker imports torch after its device is chosen
STOPPED = 130


def slots(config: SweepConfig) -> list[str | None]:
    """Where runs go at the same time: the value of CUDA_VISIBLE_DEVICES for each, None to leave it as it is."""
    if config.devices == "all":
        if known := os.environ.get("CUDA_VISIBLE_DEVICES"):
            return [*known.split(",")]
        import torch

        return [str(number) for number in range(torch.cuda.device_count())] or [None]
    return [*config.devices] if config.devices else [None] * config.parallel


def side_by_side(
    sweep: Sweep, folder: Path, total: int, begin: Callable[[int], Point], where: Sequence[str | None]
) -> Iterator[tuple[int, Point, dict[str, Any]]]:
    """Number, point and result of every run, as they end; ``begin`` gives a run's point when its turn comes.

    Raises:
        Interrupted: by Ctrl-C; the runs under way have written their checkpoints.
    """
    context: Any = multiprocessing.get_context(START)
    waiting, free = iter(range(total)), list(where)
    running: dict[int, tuple[BaseProcess, int, Point, str | None]] = {}
    try:
        while True:
            while free and (number := next(waiting, None)) is not None:
                point, slot = begin(number), free.pop(0)
                _result_file(folder, number).unlink(missing_ok=True)
                worker = context.Process(target=_work, args=(sweep.path, folder, number, point, slot, len(where)))
                worker.start()
                running[worker.sentinel] = (worker, number, point, slot)
            if not running:
                return
            ended = connection.wait(list(running))
            for sentinel in [known for known in running if known in ended]:
                worker, number, point, slot = running.pop(sentinel)
                worker.join()
                free.append(slot)
                yield number, point, _read(folder, number, point, worker.exitcode)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on with the runs that are not finished") from None
    finally:
        for worker, *_ in running.values():
            if worker.is_alive() and worker.pid:
                os.kill(worker.pid, signal.SIGINT)
        for worker, *_ in running.values():
            worker.join()


def _work(file: Path, folder: Path, number: int, point: Point, slot: str | None, company: int) -> None:
    """A worker: one run, whose words go to ``run-NNN.log`` and whose result to ``result-NNN.json``."""
    getattr(os, "setsid", lambda: None)()  # Ctrl-C reaches the sweep alone, which passes it on once
    if slot is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // company)))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with (folder / f"run-{number:03d}.log").open("a", buffering=1, encoding="utf-8") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        sys.stdout = sys.stderr = log
        try:
            result = result_of(Sweep(file), folder / f"run-{number:03d}", point, Display())
        except (Interrupted, KeyboardInterrupt):
            sys.exit(STOPPED)
        files.write_json(_result_file(folder, number), result)


def _end_with_parent() -> None:
    """A sweep that was killed leaves no run behind: each stops with a checkpoint."""
    if parent := parent_process():
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGINT)


def _read(folder: Path, number: int, point: Point, code: int | None) -> dict[str, Any]:
    if code == STOPPED:
        raise Interrupted(f"run-{number:03d} was stopped; the same command goes on with it")
    file = _result_file(folder, number)
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    why = f"its process ended with {code}; see run-{number:03d}.log"
    return {"run": f"run-{number:03d}", "point": point, "score": None, "error": why}


def _result_file(folder: Path, number: int) -> Path:
    return folder / f"result-{number:03d}.json"
