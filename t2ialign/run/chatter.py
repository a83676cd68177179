"""What libraries say while a run goes on: it goes into a log, not between the lines of the display. No torch."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TextIO

from t2ialign.foreign import shown

#: Packages whose notices no user of a run can act on; whatever else logs is shown.
LIBRARIES = {
    *("accelerate", "diffusers", "filelock", "fsspec", "httpcore", "httpx", "huggingface_hub", "matplotlib", "numpy"),
    *("peft", "PIL", "py", "tokenizers", "torch", "torchao", "torchvision", "transformers", "triton", "urllib3"),
}
FORMAT = "%(levelname)s %(name)s: %(message)s"


class Plain(logging.Formatter):
    """No escape sequence of a prompt or a path works in a warning."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class Chatter:
    """A log, and inside ``collected`` the standard error of everyone but who holds ``terminal``.

    What comes before there is a run directory waits in memory, and is dropped if there never is one.

    Attributes:
        terminal: standard error as it was.
    """

    def __init__(self) -> None:
        self.terminal: TextIO = sys.stderr
        self._waiting: list[str] | None = []
        self._files: list[IO[str]] = []

    @contextmanager
    def collected(self, file: Path | None = None) -> Iterator[None]:
        """
        Args:
            file: a second log, from the first word on.
        """
        shown, kept = logging.StreamHandler(self.terminal), logging.StreamHandler(_Writer(self))
        shown.addFilter(lambda record: record.name.partition(".")[0] not in LIBRARIES)
        root = logging.getLogger()
        logging.captureWarnings(True)
        before, root.handlers[:] = list(root.handlers), [shown, kept]
        for handler in root.handlers:
            handler.setFormatter(Plain(FORMAT))
        sys.stderr = _Writer(self)
        try:
            with ExitStack() as stack:
                if file is not None:
                    stack.enter_context(self._written(file))
                yield
        finally:
            sys.stderr = self.terminal
            logging.captureWarnings(False)
            root.handlers[:] = before

    @contextmanager
    def kept_in(self, file: Path) -> Iterator[None]:
        """Inside, the log is a file of the run directory, with what came before."""
        with self._written(file) as log:
            log.write("".join(self._waiting or ()))
            self._waiting = None
            yield

    @contextmanager
    def _written(self, path: Path) -> Iterator[IO[str]]:
        with path.open("a", encoding="utf-8", buffering=1) as file:
            file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n")
            self._files.append(file)
            try:
                yield file
            finally:
                self._files.remove(file)

    def write(self, text: str) -> None:
        if self._waiting is not None:
            self._waiting.append(text)
        for file in self._files:
            file.write(text)


class _Writer:
    """The log as a stream. It is no terminal, so libraries draw no bars on it."""

    encoding = "utf-8"

    def __init__(self, chatter: Chatter) -> None:
        self._chatter = chatter

    def write(self, text: str) -> int:
        self._chatter.write(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        """That of the real one, for children of this process."""
        return self._chatter.terminal.fileno()
