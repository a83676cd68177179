"""What is asked of the operating system; everything else here runs alike on Linux, macOS and Windows."""

from __future__ import annotations

import sys

import torch


def peak_memory(device: torch.device) -> float | None:
    """Peak memory in MB: the device's on CUDA, else the process's; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return _peak_working_set()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _peak_working_set() -> float | None:
    """Windows' own figure, by GetProcessMemoryInfo."""
    import ctypes

    windll = getattr(ctypes, "windll", None)
    if windll is None:
        return None
    sizes = [
        "PeakWorkingSetSize",
        "WorkingSetSize",
        "QuotaPeakPagedPoolUsage",
        "QuotaPagedPoolUsage",
        "QuotaPeakNonPagedPoolUsage",
        "QuotaNonPagedPoolUsage",
        "PagefileUsage",
        "PeakPagefileUsage",
    ]

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", ctypes.c_uint32),
            ("PageFaultCount", ctypes.c_uint32),
            *((name, ctypes.c_size_t) for name in sizes),
        ]

    counters = Counters(cb=ctypes.sizeof(Counters))
    process = windll.kernel32.GetCurrentProcess
    process.restype = ctypes.c_void_p
    if not windll.psapi.GetProcessMemoryInfo(ctypes.c_void_p(process()), ctypes.byref(counters), counters.cb):
        return None
    return counters.PeakWorkingSetSize / 2**20
