"""Threads that play the ranks of a distributed run."""

from __future__ import annotations

from threading import Barrier

import torch

from t2ialign.tensors.distributed import World


class Meeting:
    """Where threads that play ranks exchange tensors."""

    def __init__(self, size: int) -> None:
        self.tensors: list[torch.Tensor | None] = [None] * size
        self.barrier = Barrier(size)

    def exchange(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors[rank] = tensor
        self.barrier.wait(timeout=30)
        together = torch.cat(self.tensors)
        self.barrier.wait(timeout=30)
        return together


class Rank(World):
    """A thread among ``size``."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        super().__init__(rank, size)
        self.__dict__["meeting"] = meeting

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.meeting.exchange(self.rank, tensor)
