"""One process per device under ``torchrun`` or ``accelerate launch``; a single process otherwise."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from t2ialign.errors import UsageError


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate equally shaped (n, ...) tensors of all ranks to (size * n, ...), in rank order."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
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
        if self.size == 1:
            return text
        box: list[str] = [text]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def join() -> World:
    """The world that the launcher's environment describes; starts torch.distributed when there are peers."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), size)


def device(wanted: str = "auto") -> torch.device:
    """Resolve a spec's device: "auto" is this rank's CUDA device, else Apple's MPS, else the CPU.

    Raises:
        UsageError: the machine has no such device.
    """
    if wanted != "auto":
        found = torch.device(wanted)
        if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"device '{wanted}': this machine has {torch.cuda.device_count()} CUDA devices")
        return found
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
