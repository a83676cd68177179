"""A rank for torchrun: the command line in the toy world; rank 1 may meet with an accident in the second step.

torchrun ... toy_rank.py KIND COMMAND ...      KIND: a signal, "exception" or "none"
"""

from __future__ import annotations

import os
import signal
import sys

from t2ialign import cli
from t2ialign.testing import installed, toy

if __name__ == "__main__":
    kind = sys.argv[1]
    sys.argv = ["t2ialign", *sys.argv[2:]]
    real = toy.RandomSearch.step

    def step(self: toy.RandomSearch, index: int) -> object:
        if index == 1 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            if kind == "exception":
                raise RuntimeError("a planned accident")
            if kind != "none":
                os.kill(os.getpid(), getattr(signal, kind))
        return real(self, index)

    toy.RandomSearch.step = step  # type: ignore[method-assign,assignment]
    with installed():
        cli.main()
