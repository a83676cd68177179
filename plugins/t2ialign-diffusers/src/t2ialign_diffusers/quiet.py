"""No progress bars and no notices from libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, diffusers and transformers show no progress bars and no notices below errors."""
    import diffusers.utils.logging
    import transformers.utils.logging

    levels = {module: module.get_verbosity() for module in (diffusers.utils.logging, transformers.utils.logging)}
    for module in levels:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level in levels.items():
            module.set_verbosity(level)
            module.enable_progress_bar()
