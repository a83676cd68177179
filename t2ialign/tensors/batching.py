"""Micro-batches: memory chunks that never change a result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

log = logging.getLogger(__name__)
T = TypeVar("T")


def split(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover range(total)."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def split_evenly(total: int, size: int) -> Iterator[slice]:
    """The same in slices that are all equally long: the last one may overlap with the one before."""
    size = min(size, total)
    for rows in split(total, size):
        yield slice(rows.stop - size, rows.stop)


def with_oom_retry(run: Callable[[int], T], micro_batch: int, fixed: bool = False) -> tuple[T, int]:
    """Call ``run(micro_batch)``; on out-of-memory halve the micro-batch and try again.

    Args:
        fixed: do not try again: other ranks are in the same forward pass of a sharded network.

    Returns:
        The result and the micro-batch that worked.

    Raises:
        RuntimeError, MemoryError: one image does not fit, or whatever ``run`` raises.
    """
    while True:
        try:
            return run(micro_batch), micro_batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or micro_batch == 1 or fixed:
                raise
        micro_batch //= 2
        torch.cuda.empty_cache()
        log.warning("out of memory: going on with a micro-batch of %d (same results)", micro_batch)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; off CUDA, and for CUDA's own libraries, torch has a plain ``RuntimeError``."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _TOO_LARGE)


_TOO_LARGE = (
    "DefaultCPUAllocator",
    "not enough memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


_ON_CPU = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}


def image_tolerance(dtype: str, device: torch.device) -> float:
    """Largest pixel difference to expect between two drawings by the same numbers.

    Off the CPU, kernels and so the order of sums depend on the batch, which costs about ten times as much.

    Args:
        dtype: of the network.
        device: where it runs.
    """
    return _ON_CPU[dtype] * (1 if device.type == "cpu" else 10)
