"""Switches that hold for the process: how float32 is computed, whether twice in the same way, and freed memory."""

from __future__ import annotations

import os

import torch

from t2ialign.config import RunConfig

#: What the process had before the first run, for options that a spec leaves out.
_BEFORE = (
    torch.get_float32_matmul_precision(),
    torch.backends.cudnn.allow_tf32,
    torch.are_deterministic_algorithms_enabled(),
    torch.is_deterministic_algorithms_warn_only_enabled(),
)
#: cuBLAS repeats its sums with a workspace of fixed size, which it reads when it starts.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def apply(run: RunConfig) -> None:
    """Set what ``run.matmul_precision`` and ``run.deterministic`` ask for; what is left out is as it was before."""
    precision, tf32, deterministic, warn_only = _BEFORE
    given = run.matmul_precision
    torch.set_float32_matmul_precision(given or precision)
    torch.backends.cudnn.allow_tf32 = tf32 if given is None else given != "highest"
    if run.deterministic:
        os.environ.setdefault(CUBLAS, ":4096:8")
        deterministic, warn_only = True, True  # an operation without such a form is named in a warning
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def keep_freed_memory() -> None:
    """Let the C library keep a batch's memory on the CPU for the next batch.

    glibc gives large blocks back to the system, and each page that comes back costs a fault and 4 kB of zeros, which
    can take as long as the arithmetic. It keeps what is smaller than the largest block that was freed so far, up to
    32 MB (mallopt(3), M_MMAP_THRESHOLD), so one that nobody touches is freed here. Others take no notice.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
