"""Does this machine have what a spec asks for? Looked at before anything is made or loaded; no torch."""

from __future__ import annotations

import ctypes.util
import sys
from importlib.util import find_spec
from pathlib import Path

from t2ialign import places
from t2ialign.errors import UsageError
from t2ialign.spec.model import Spec


def check_machine(spec: Spec) -> None:
    """
    Raises:
        UsageError: ``run.device`` or a tracker is not here, or the run directory cannot be made.
    """
    device = spec.run.device
    if device.startswith("cuda") and not _has_cuda():
        raise UsageError(f'{spec.source}: run.device = "{device}": this machine has no CUDA; take "auto" or "cpu"')
    if device == "mps" and sys.platform != "darwin":
        raise UsageError(f'{spec.source}: run.device = "mps": only Macs have it; take "auto" or "cpu"')
    for name in spec.run.trackers:
        if any(find_spec(package) is None for package in ("accelerate", name)):
            raise UsageError(
                f"{spec.source}: run.trackers: '{name}' is not installed: pip install \"t2ialign[{name}]\""
            )
    try:
        reason = places.unwritable(places.path(spec.run.out))
    except ValueError as error:
        reason = str(error)
    if reason:
        raise UsageError(f'{spec.source}: run.out = "{spec.run.out[:200]}": {reason}')


def _has_cuda() -> bool:
    """Whether there is a driver; that a device answers is known once torch is loaded."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return bool(torch.cuda.is_available())
    name = "nvcuda" if sys.platform == "win32" else "cuda"
    return ctypes.util.find_library(name) is not None or Path("/dev/nvidiactl").exists()
