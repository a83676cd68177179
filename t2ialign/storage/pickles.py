"""Reading foreign pickles without running them.

A pickle may name any function and call it. Here every name is refused, but for those that the reader lists, each with a
stand-in of ours; objects of listed modules become empty shells that keep their state and do nothing.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import IO, Any

import torch
from torch import Tensor

from t2ialign.errors import UsageError

Stand = Callable[..., Any] | type | torch.dtype


class Shell:
    """Takes the place of an object of any class: keeps its state and does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.state: Any = {}

    def __setstate__(self, state: object) -> None:
        self.state = state


def rebuild_tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    """Stands for torch's own constructor; out-of-range views raise."""
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def rebuild_parameter(data: Tensor, *_: object) -> Tensor:
    """Stands for torch's own constructor."""
    return data


#: What every pickled module needs.
KNOWN: dict[tuple[str, str], Stand] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # as protocol 2, torch's default, spells it
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
}
#: What a broken or foreign stream raises while it is read.
ERRORS = (pickle.UnpicklingError, EOFError, TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError)


class RestrictedUnpickler(pickle.Unpickler):
    """Knows listed names and nothing else.

    Args:
        stream: the pickle.
        what: what it should hold, for errors.
        known: further (module, name) pairs and what stands for them.
        shells: modules, by the beginning of their names, whose classes become shells.
    """

    def __init__(
        self, stream: IO[bytes], what: str, known: dict[tuple[str, str], Stand], shells: tuple[str, ...] = ()
    ) -> None:
        super().__init__(stream)
        self._what, self._known, self._shells = what, KNOWN | known, shells

    def find_class(self, module: str, name: str) -> Any:
        """
        Raises:
            UsageError: the name is not listed; nothing of it was imported or run.
        """
        if (module, name) in self._known:
            return self._known[module, name]
        if module.startswith(self._shells):
            return Shell
        raise UsageError(f"the file names '{module}.{name}', which {self._what} has no use for; nothing was run")
