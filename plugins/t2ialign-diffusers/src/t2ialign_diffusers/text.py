"""Text encoders in memory: loaded when a prompt is not in the cache, once, and dropped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch


class TextComponents:
    """The text components of a pipeline, loaded on first use inside ``kept`` and dropped at its end.

    Args:
        load: gives a pipeline with nothing else.
        parked: context in which everything that is loaded beside them waits on the CPU.
    """

    def __init__(self, load: Callable[[], Any], parked: Callable[[], AbstractContextManager[None]]) -> None:
        self._load, self._parked = load, parked
        self._pipeline: Any = None
        self._stack: ExitStack | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, all that is encoded shares one loading; blocks may lie in one another."""
        if self._stack is not None:
            yield
            return
        with ExitStack() as self._stack:
            try:
                yield
            finally:
                self._stack.callback(self._drop)

    @property
    def pipeline(self) -> Any:
        """Only inside ``kept``."""
        if self._stack is None:
            raise RuntimeError("text components are used inside kept() alone")
        if self._pipeline is None:
            self._stack.enter_context(self._parked())
            self._pipeline = self._load()
        return self._pipeline

    def _drop(self) -> None:
        was_loaded = self._pipeline is not None
        self._pipeline = self._stack = None
        if not was_loaded:  # all came from the cache: looking through a whole process for nothing takes long
            return
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
