"""The run's side of its trackers: start them, look whether they live, tell of one that does not, wait for their end.

Nothing here waits for a tracker before the run is over, and nothing that a tracker does ends the run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from t2ialign.storage import files
from t2ialign.tracker_options import TrackersConfig
from t2ialign.trackers.worker import read_state

#: What a tracker's process must not see: devices, and the ranks of the run, of which it is none.
_HIDDEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Seconds between two looks.
PAUSE = 0.5


@contextmanager
def followed(path: Path, names: Sequence[str], options: TrackersConfig, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, trackers follow the run directory ``path``; on leaving, they get what is left and end.

    Args:
        say: is told once of each tracker that fails or is silent for ``options.timeout`` seconds.
    """
    if not names:
        yield
        return
    workers = [Worker(path, name, options.timeout, say) for name in dict.fromkeys(names)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PAUSE):
            for worker in workers:
                worker.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        for worker in workers:
            worker.close()
        for worker in workers:
            while worker.look():
                time.sleep(PAUSE / 5)


class Worker:
    """One tracker's process."""

    def __init__(self, path: Path, name: str, timeout: float, say: Callable[[str], None]) -> None:
        self.name, self.timeout, self.say = name, timeout, say
        folder = path / "trackers"
        folder.mkdir(exist_ok=True)
        self.file, self.log = folder / f"{name}.json", folder / f"{name}.log"
        if "error" in (state := read_state(self.file)):
            files.write_json(self.file, {key: value for key, value in state.items() if key != "error"})
        environment = {key: value for key, value in os.environ.items() if key not in _HIDDEN}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "t2ialign.trackers.worker", name, str(path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # a Ctrl-C in the terminal is the run's
            )
        self._sign: int | None = self._touched()
        self._seen = time.monotonic()
        self.over = False

    def look(self) -> bool:
        """Whether the process is at work; one that failed or is silent for too long is told of, once, and ended."""
        if self.over:
            return False
        now, sign = time.monotonic(), self._touched()
        if sign != self._sign:
            self._sign, self._seen = sign, now
        code = self.process.poll()
        if code is None and now - self._seen < self.timeout:
            return True
        self.over = True
        if code is None:
            self._end()
            self._tell(f"gave no sign of life for {self.timeout:g} s")
        elif code:
            self._tell(f"failed: {read_state(self.file).get('error') or f'exit code {code}'}")
        return False

    def close(self) -> None:
        """Tell the process that the run is over."""
        assert self.process.stdin
        with suppress(OSError):  # it is gone already
            self.process.stdin.close()
        self._seen = time.monotonic() if not self.over else self._seen

    def _touched(self) -> int | None:
        try:
            return self.file.stat().st_mtime_ns
        except OSError:
            return None

    def _end(self) -> None:
        """With all that it started."""
        kill_group = getattr(os, "killpg", None)  # Windows has no groups
        with suppress(OSError):
            if kill_group:
                kill_group(self.process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            self.process.kill()
        self.process.wait()

    def _tell(self, what: str) -> None:
        self.say(f"tracker '{self.name}' {what}; the run goes on without it ({self.log})")
