"""The ranks of a run, and the device of each."""

from __future__ import annotations

import os

import torch

from t2ialign.errors import UsageError
from t2ialign.ranks.world import World, join

__all__ = ["World", "device", "join"]


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
