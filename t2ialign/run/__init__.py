"""The loop of a run, its end and its display; and, called, a run from Python: ``t2ialign.run("spec.toml")``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ialign.run.opened.run import Run


class _Callable(ModuleType):
    """The folder's name is the verb, too."""

    def __call__(self, spec: str | Path, overrides: Mapping[str, Any] | Sequence[str] = (), quiet: bool = False) -> Run:
        """Run a spec to its end.

        Args:
            spec: the TOML file.
            overrides: of its keys: {"run.steps": 10}, or texts as ``--set`` takes them.
            quiet: show nothing while it runs.

        Raises:
            T2IAlignError: what the command would say, too.
        """
        from t2ialign.run.opened.run import start

        return start(Path(spec), overrides, quiet)


sys.modules[__name__].__class__ = _Callable
