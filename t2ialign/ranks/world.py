"""One process per device under ``torchrun`` or ``accelerate launch``; a single process otherwise.

Before anything is exchanged the ranks meet: each says that all is well, that it was asked to stop, or that it failed.
So none waits for one that will not come, and all know the same when they go on. All ranks make the same meetings in
the same order; a rank that fails spends its next one on saying so.
"""

from __future__ import annotations

import atexit
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from t2ialign.errors import T2IAlignError, culprit
from t2ialign.ranks import stops

T = TypeVar("T")
#: Seconds that ranks wait for each other unless a spec says otherwise.
TIMEOUT = 3600.0
#: Seconds in which ranks that live tell each other so, once one seems lost.
ROLL_CALL = 3.0
FAILED = -1


class PeerFailed(T2IAlignError):
    """A rank failed, or is gone; the message names it.

    Attributes:
        spokesman: the rank that tells people; the others are silent.
        lost: nothing more can be exchanged.
        trace: where the failure comes from, if the message does not explain it.
    """

    silent = False

    def __init__(
        self, message: str, exit_code: int = 1, spokesman: int = 0, lost: bool = False, trace: str = ""
    ) -> None:
        super().__init__(message)
        self.exit_code, self.spokesman, self.lost, self.trace = exit_code, spokesman, lost, trace


class Peers:
    """What the ranks tell each other besides tensors, in a process group of its own, on the CPU.

    Attributes:
        patience: seconds that a rank which failed waits for the others to hear it.
        kept: the launcher's store, if it has one, which workers that are started again see, too.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float, kept: dist.Store | None) -> None:
        self.store, self.rank, self.size, self.timeout, self.kept = store, rank, size, timeout, kept
        self.patience = timeout
        self.meetings = self.runs = 0
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def exchange(self, word: int, reason: str = "") -> list[int]:
        """Every rank's word: 0, the number of a signal, or ``FAILED`` with a reason.

        Raises:
            PeerFailed: a rank is gone, or does not come within the time-out.
        """
        self.meetings += 1
        if reason:
            self.store.set(self._key(self.rank), reason)
        words = [torch.zeros(1, dtype=torch.int32) for _ in range(self.size)]
        started = time.monotonic()
        try:
            work = dist.all_gather(words, torch.tensor([word], dtype=torch.int32), self.group, async_op=True)
            work.wait(timedelta(seconds=self.patience if reason else self.timeout))
        except RuntimeError as error:
            raise self.lost(time.monotonic() - started) from error
        return [int(one) for one in words]

    def heard(self, rank: int) -> PeerFailed:
        """What a rank that failed in this meeting said."""
        return self._told(self._key(rank), rank, 0)

    def lost(self, waited: float) -> PeerFailed:
        """Who is gone, found out by a roll call; a rank that failed and could not wait has left its reason."""
        atexit.unregister(dist.destroy_process_group)  # it would wait for the others
        others = [rank for rank in range(self.size) if rank != self.rank]
        try:
            self.store.set(f"here/{self.rank}", "")
            until = time.monotonic() + ROLL_CALL
            missing = others
            while missing and time.monotonic() < until:
                time.sleep(0.05)
                missing = [rank for rank in missing if not self.store.check([f"here/{rank}"])]
            spokesman = min({self.rank, *others} - set(missing))
            for key, rank in [(self._key(rank, more), rank) for more in (0, 1) for rank in others]:
                if self.store.check([key]):
                    return self._told(key, rank, spokesman, lost=True)
        except RuntimeError:  # the store is gone, too
            return PeerFailed("the connection to the other ranks broke", spokesman=self.rank, lost=True)
        names = f"rank{'s' if missing[1:] else ''} {', '.join(map(str, missing))}" if missing else "a rank"
        if waited >= self.timeout:
            words = f"did not come within run.timeout = {self.timeout:g} s"
        else:
            words = "do not answer: one of them is gone" if missing[1:] else "is gone"
            words += ", killed, or its machine was lost"
        return PeerFailed(f"{names} {words}", spokesman=spokesman, lost=True)

    def _told(self, key: str, rank: int, spokesman: int, lost: bool = False) -> PeerFailed:
        said: dict[str, Any] = json.loads(self.store.get(key))
        return PeerFailed(f"rank {rank}: {said['message']}", said["exit_code"], spokesman, lost, said["trace"])

    def _key(self, rank: int, more: int = 0) -> str:
        return f"reason/{self.meetings + more}/{rank}"


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    peers: Peers | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def meet(self) -> str:
        """Wait for all ranks.

        Returns:
            The signal by which any of them was asked to stop, the same on all of them; empty for none.

        Raises:
            PeerFailed: a rank failed or is gone.
        """
        if self.peers is None:
            return stops.word(stops.process.asked) if stops.process.asked else ""
        words = self.peers.exchange(stops.process.asked)
        if FAILED in words:
            raise self.peers.heard(words.index(FAILED))
        asked = [rank for rank, number in enumerate(words) if number]
        return stops.word(words[asked[0]], asked[0]) if asked else ""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, an exception at any rank ends the block at all of them, as ``PeerFailed``.

        At the rank itself it stays what it was where its message says all. Exceptions that all ranks raise by
        agreement carry ``agreed = True``, and stay what they are.
        """
        if self.peers is None:
            yield
            return
        try:
            yield
            self.meet()
        except Exception as error:
            told: dict[str, Any] = error.__dict__
            if isinstance(error, PeerFailed) or getattr(error, "agreed", False):
                told.setdefault("silent", self.rank != getattr(error, "spokesman", 0))
                raise
            reason = _reason(error)
            told |= {"agreed": True, "silent": not self.is_main}
            own = PeerFailed(f"rank {self.rank}: {reason['message']}", reason["exit_code"], trace=reason["trace"])
            own.silent = not self.is_main
            try:
                self.peers.exchange(FAILED, json.dumps(reason))
            except PeerFailed as gone:
                if _is_connection(error):
                    gone.silent = self.rank != gone.spokesman
                    raise gone from error
                own.silent = told["silent"] = False  # nobody heard it
            if own.trace:
                raise own from error
            raise

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate equally shaped (n, ...) tensors of all ranks to (size * n, ...), in rank order."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._met(lambda: dist.all_gather(parts, tensor.contiguous()))
        return torch.cat(parts)

    def mine(self, count: int) -> list[int]:
        """This rank's share of ``count`` rows, equally many on every rank; the last shares begin again at row 0."""
        share = -(-count // self.size)
        return [row % count for row in range(self.rank * share, (self.rank + 1) * share)]

    def collect(self, tensor: Tensor, count: int) -> Tensor:
        """All ``count`` rows on every rank, from what each rank made of its ``mine(count)``."""
        return self.gather(tensor)[:count]

    def share(self, text: str) -> str:
        """Rank 0's text on every rank."""
        if self.peers is None:
            return text
        box, group = [text], self.peers.group
        self._met(lambda: dist.broadcast_object_list(box, src=0, group=group))
        return box[0]

    def send(self, value: T) -> list[T]:
        """Every rank's value on rank 0, in rank order; nothing on the others."""
        if self.peers is None:
            return [value]
        box: list[Any] | None = [None] * self.size if self.is_main else None
        group = self.peers.group
        self._met(lambda: dist.gather_object(value, box, group=group))
        return box or []

    def _met(self, exchange: Callable[[], object]) -> None:
        """An exchange after a meeting."""
        self.meet()
        started = time.monotonic()
        try:
            exchange()
        except RuntimeError as error:
            if self.peers is None or not _is_connection(error):
                raise
            raise self.peers.lost(time.monotonic() - started) from error

    def begin(self, run: str = "") -> str:
        """The run directory that this launcher's workers began before it started them again.

        Args:
            run: rank 0's new one; empty asks for that of the process's next run.
        """
        if self.peers is None:
            return run
        kept = self.peers.kept if self.is_main else None
        self.peers.runs += not run and self.is_main
        name = f"run/{self.peers.runs}"
        if kept and run:
            kept.set(name, run)
        elif kept and kept.check([name]):
            run = kept.get(name).decode()
        return self.share(run)

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers, on every rank."""
        return int(self.gather(torch.tensor([number])).min())


def _is_connection(error: BaseException | None) -> bool:
    """Whether an exception says that a rank could not be reached."""
    words = ("Connection closed", "Connection reset", "Connection refused", "Timed out", "Broken pipe", "NCCL")
    found = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return found or (error is not None and _is_connection(error.__cause__))


def _reason(error: Exception) -> dict[str, Any]:
    """What other ranks tell of an exception, with its traceback where the message alone does not explain it."""
    message = str(error) or type(error).__name__
    if not isinstance(error, T2IAlignError):
        who = culprit(error)
        message = f"{f'{who} failed: ' if who else ''}{type(error).__name__}: {error}"
    cause = error.__cause__ if isinstance(error, T2IAlignError) else error
    trace = "" if cause is None else "".join(traceback.format_exception(cause))
    return {"message": message, "exit_code": getattr(error, "exit_code", 1), "trace": trace}


def join(timeout: float = TIMEOUT) -> World:
    """The world that the launcher's environment describes; starts torch.distributed when there are peers.

    Args:
        timeout: seconds that a rank waits for the others, anywhere; the first call in a process decides.
    """
    global _joined
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if _joined is None:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        store, rank, again = _met_at(timeout)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
        atexit.register(dist.destroy_process_group)
        _joined = World(rank, size, Peers(dist.PrefixStore("t2ialign", store), rank, size, timeout, again))
    return _joined


def _met_at(timeout: float) -> tuple[dist.Store, int, dist.Store | None]:
    """A store that only the ranks of this attempt see, this rank, and the launcher's store, which outlives attempts.

    A launcher that starts the workers again keeps its store, with the addresses of those that died, and its nodes count
    attempts differently. So rank 0 names the attempt: each rank leaves a mark of its own, and takes part once it is
    answered; a dead one's mark never is.
    """
    wait = timedelta(seconds=timeout)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store, rank, _ = next(dist.rendezvous("env://", timeout=wait))
        return store, rank, None
    place, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept = dist.PrefixStore("t2ialign", dist.TCPStore(place, port, is_master=False, timeout=wait))
    rank, size, mark = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), uuid4().hex
    if rank:
        kept.set(f"arrived/{rank}", mark)
        attempt = kept.get(f"answered/{mark}").decode()
        kept.set(f"joined/{attempt}/{rank}", "")
        kept.wait([f"full/{attempt}"], wait)
        return dist.PrefixStore(attempt, kept), rank, kept
    missing, until = set(range(1, size)), time.monotonic() + timeout
    while missing:
        if time.monotonic() > until:
            raise PeerFailed(f"rank {min(missing)} did not come within run.timeout = {timeout:g} s")
        for other in list(missing):
            if kept.check([f"joined/{mark}/{other}"]):
                missing.remove(other)
            elif kept.check([f"arrived/{other}"]):
                kept.set(f"answered/{kept.get(f'arrived/{other}').decode()}", mark)
        time.sleep(0.02)
    kept.set(f"full/{mark}", "")
    return dist.PrefixStore(mark, kept), rank, kept


_joined: World | None = None
