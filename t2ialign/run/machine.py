"""What is asked of the operating system; everything else here runs alike on Linux, macOS and Windows."""

from __future__ import annotations

import shutil
import sys

import torch

from t2ialign.errors import UsageError
from t2ialign.problem.optimizer import Optimizer
from t2ialign.problem.problem import Problem
from t2ialign.storage.run_directory import RunDir


def peak_memory(device: torch.device) -> float | None:
    """Peak memory in MB: the device's on CUDA, else the process's; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return _peak_working_set()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def check_room(run: RunDir, problem: Problem, optimizer: Optimizer) -> None:
    """Is there room for what a run writes: checkpoints, the images of an evaluation at their full size, grids?

    Raises:
        UsageError: less than that is free; says how much is needed, and what makes it less.
    """
    spec = problem.spec
    state = sum(tensor.numel() * tensor.element_size() for tensor in optimizer.state().tensors.values())
    height, width = problem.backend.info.image_size
    drawn = 2 * len(problem.evaluation_prompts) * spec.evaluation.images_per_prompt
    steps = spec.optimizer_config.plan(spec).steps
    grids = 2 + (steps // spec.samples.every if spec.samples.every else 0)
    needed = state * (spec.run.keep_checkpoints + 2) + 3 * height * width * (drawn + grids * spec.samples.count)
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise UsageError(
            f"{run.path}: {free / 2**20:,.0f} MB are free, and the run writes up to {needed / 2**20:,.0f} MB; take"
            " another run.out, or lower run.keep_checkpoints, evaluation.limit or samples.count"
        )


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
