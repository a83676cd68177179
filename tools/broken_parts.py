"""Parts, plugins, trackers and servers that fail, for ``faults.py``: each is set up in the process that it disturbs."""

from __future__ import annotations

import base64
import io
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageStat

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from services import Server, free_port

from t2ialign.problem.optimizer import StepResult
from t2ialign.run import runner
from t2ialign.testing import toy
from t2ialign.testing.world import installed

Tables = dict[str, dict[str, Any]]


def raises(*arguments: object) -> Any:
    raise ValueError("no such word")


def exits(*arguments: object) -> Any:
    sys.exit(3)


#: What a reward gives in place of scores (B,).
SCORES: list[Callable[[torch.Tensor], Any]] = [
    lambda images: [0.0] * len(images),
    lambda images: None,
    lambda images: images.mean(),
    lambda images: images.mean((1, 2, 3))[:, None],
    lambda images: images.mean((1, 2, 3)).numpy(force=True),
    raises,
    exits,
]
#: What an optimizer gives in place of a step's result.
RESULTS: list[Callable[[int], Any]] = [
    lambda index: None,
    lambda index: {"reward": 1.0},
    lambda index: StepResult({"x": "fast"}),  # type: ignore[dict-item]
    lambda index: StepResult({"x": torch.ones(2)}),  # type: ignore[dict-item]
    raises,
    exits,
]
#: The module of a plugin, and what the list of plugins says of it.
MODULES = {
    "raise ImportError('no libgone.so')\n": "no libgone.so",
    "raise SystemExit(3)\n": "exited at import",
    "import sys; sys.exit()\n": "exited at import",
    "def broken(:\n": "SyntaxError",
    "print('hello')\n": "registered nothing",
    "def t2ialign_rewards(register): register('x', int)\n": "lacks @t2ialign.hookimpl",
}
#: The library of a tracker.
LIBRARIES = {
    "raises": "class Run:\n    def log(self, metrics, step): raise ValueError('no')\ndef init(**_): return Run()\n",
    "no network": "def init(**_): raise OSError(101, 'Network is unreachable')\n",
    "dies": "import os\ndef init(**_): os._exit(3)\n",
    "hangs": "import time\ndef init(**_): time.sleep(600)\n",
}


def broken_reward(chooser: random.Random, tables: Tables, folder: Path) -> None:
    """From some call on, the reward breaks its contract."""
    left, bad, score = [chooser.randint(1, 4)], chooser.choice(SCORES), toy.Redness.score

    def scores(self: toy.Redness, images: torch.Tensor, prompts: Any) -> Any:
        left[0] -= 1
        return score(self, images, prompts) if left[0] > 0 else bad(images)

    toy.Redness.score = scores  # type: ignore[method-assign]


def broken_optimizer(chooser: random.Random, tables: Tables, folder: Path) -> None:
    """From some step on, the optimizer does."""
    first, bad, load = chooser.randrange(4), chooser.choice(RESULTS), runner.load_optimizer

    def loaded(problem: Any) -> Any:
        optimizer = load(problem)
        step = optimizer.step
        optimizer.step = lambda index: step(index) if index < first else bad(index)  # type: ignore[method-assign]
        return optimizer

    runner.load_optimizer = loaded


def broken_plugin(chooser: random.Random, tables: Tables, folder: Path) -> None:
    """Another plugin, of a distribution of its own, does not load; the run does not need it.

    Raises:
        AssertionError: the list of plugins does not say so.
    """
    module, said = chooser.choice(sorted(MODULES.items()))
    info = folder / "library" / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[t2ialign]\nbroken = broken_plugin\n")
    (folder / "library" / "broken_plugin.py").write_text(module)
    sys.path.insert(0, str(folder / "library"))
    found = installed(everything=True).__enter__()  # for the rest of this process
    errors = {status.name: status.error for status in found.plugins}
    assert said in str(errors["broken"]), errors["broken"]


def broken_tracker(chooser: random.Random, tables: Tables, folder: Path) -> None:
    name = chooser.choice(sorted(LIBRARIES))
    (folder / "library").mkdir(parents=True)
    (folder / "library" / "swanlab.py").write_text(LIBRARIES[name])
    sys.path.insert(0, str(folder / "library"))
    tables["run"] = {"trackers": ["swanlab"]}
    tables["trackers"] = {"timeout": 5.0 if name == "hangs" else 60.0}


def redness(request: Any) -> dict[str, list[float]]:
    """The service of rewards: how much redder than green and blue each picture is."""
    scores = []
    for text in request["images"]:
        red, green, blue = ImageStat.Stat(Image.open(io.BytesIO(base64.b64decode(text)))).mean
        scores.append((red - (green + blue) / 2) / 255)
    return {"scores": scores}


class RewardServer:
    """A server of rewards in a process of its own.

    Attributes:
        requests: those of the last ``running``; counted once it ended.
    """

    def __init__(self, folder: Path) -> None:
        self.port, self.file, self.requests = free_port(), folder / "requests", 0

    @property
    def table(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/score"
        return {"kind": "remote", "url": url, "send": "png", "batch": 4, "backoff": 0.05, "wait": 1.5}

    @contextmanager
    def running(self, dies_at: int = 0, returns: bool = False) -> Iterator[None]:
        """Inside, it answers.

        Args:
            dies_at: the request at which the process is killed, before it answers; 0: never.
            returns: it is started again a moment later.
        """
        self.file.write_bytes(b"")
        keeper = os.fork()
        if keeper == 0:
            try:
                os.setpgid(0, 0)
                self._keep(dies_at, returns)
            finally:
                os._exit(0)
        with suppress(OSError):  # whoever comes first makes the group
            os.setpgid(keeper, keeper)
        try:
            self._listens()
            yield
        finally:
            with suppress(ProcessLookupError):  # it was killed for good
                os.killpg(keeper, signal.SIGKILL)
            os.waitpid(keeper, 0)
            self.requests = self.file.stat().st_size

    def _listens(self) -> None:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return

    def _keep(self, dies_at: int, returns: bool) -> None:
        while True:
            server = os.fork()
            if server == 0:
                self._serve(dies_at)
            os.waitpid(server, 0)
            if not returns:
                return
            time.sleep(0.2)
            dies_at = 0

    def _serve(self, dies_at: int) -> None:
        def answer(request: Any) -> dict[str, list[float]]:
            with self.file.open("ab") as file:
                file.write(b".")
            if self.file.stat().st_size == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return redness(request)

        Server(answer, self.port).serve_forever()
