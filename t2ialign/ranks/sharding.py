"""Frozen weights split over the ranks with torch's ``fully_shard``: each holds a part, and gets a block's others when
the block runs.

A forward pass is then an exchange, so that all ranks make equally many of them, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from t2ialign.ranks.world import World

#: Seconds that a rank which failed waits for the others: they may be in a forward pass that it will not join.
PATIENCE = 20.0


def shard(module: nn.Module, whole: Iterable[nn.Parameter], world: World, device: torch.device) -> None:
    """Split a network's parameters over the ranks, in place, block by block; ``whole`` ones stay on every rank."""
    kept = set(whole)
    mesh = init_device_mesh(device.type, (world.size,))
    for part in (*blocks(module), module):
        fully_shard(part, mesh=mesh, ignored_params=kept, reshard_after_forward=True)
    if world.peers:
        world.peers.patience = min(world.peers.timeout, PATIENCE)


def held(module: nn.Module) -> int:
    """Numbers of a network's parameters that are on this rank between two forward passes."""
    parts = (p.to_local() if isinstance(p, DTensor) else p for p in module.parameters())
    return sum(part.numel() for part in parts)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost ``nn.ModuleList``s."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)
