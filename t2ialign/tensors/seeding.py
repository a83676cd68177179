"""Derived randomness: every draw is a function of (seed, purpose, indices), never of what ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive(seed: int, *words: str | int) -> int:
    """A 63-bit seed for one purpose: ``derive(run_seed, "noise", step, pair)``.

    Distinct word sequences give independent seeds (blake2b), also across types: ("a", 1) is not ("a1",).
    """
    text = repr((seed, *words)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int) -> torch.Generator:
    """A CPU generator at ``seed``."""
    return torch.Generator().manual_seed(seed)


def normal(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Unit Gaussian float32 (len(seeds), *shape), row i from seed i alone.

    Drawn on the CPU with one generator per row, exactly as ``torch.randn(shape, generator=g)`` would, so a diffusers
    pipeline given a list of CPU generators with these seeds starts from the same latents.
    """
    noise = torch.empty((len(seeds), *shape))
    source = torch.Generator()
    for row, seed in zip(noise, seeds, strict=True):
        torch.randn(row.shape, generator=source.manual_seed(seed), out=row)
    return noise.to(device)


def choose(seed: int, total: int, count: int) -> list[int]:
    """``count`` distinct indices below ``total`` in random order; more than ``total`` starts further permutations."""
    source = generator(seed)
    picked: list[int] = []
    while len(picked) < count:
        picked += torch.randperm(total, generator=source).tolist()
    return picked[:count]
