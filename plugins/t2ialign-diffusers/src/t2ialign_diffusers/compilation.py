"""``torch.compile``, in place, for what a backend really calls."""

from __future__ import annotations

import os
import shutil
from functools import wraps
from typing import Any

import torch
from torch import nn

from t2ialign.errors import UsageError

#: What compiles; the tests exchange it for one that is quick.
BACKEND = "inductor"
#: Graphs that one network may need: base, LoRA, population and gradients, each for its first size, for all other sizes
#: and for a single image. Past the limit torch would go on without compiling.
GRAPHS = 32
#: Modes that run on CUDA graphs.
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
COMPILERS = ("c++", "g++", "clang++", "cl")


def compile_forward(module: nn.Module, mode: str, fullgraph: bool = False) -> None:
    """Compile the module's forward, on its first call, in place: class, parameters and their names stay.

    Adapters and replaced forwards of inner layers are seen whenever they come. Hooks on inner layers are not seen by
    torch.compile, so while there are any the module runs without.

    Args:
        mode: a mode of ``torch.compile``.
        fullgraph: whether a forward that is more than one graph is an error.

    Raises:
        UsageError: no C++ compiler is installed; when called, that a forward is more than the one graph asked for.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name):
        raise UsageError(f"backend.compile = '{mode}' needs a C++ compiler on the path: {', '.join(COMPILERS)}")
    import torch._dynamo.config as limits
    from torch._dynamo.exc import FailOnRecompileLimitHit, Unsupported

    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    eager = module.forward
    compiled = torch.compile(eager, mode=mode, backend=BACKEND, fullgraph=fullgraph)

    @wraps(eager)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if _observed(module):
            return eager(*args, **kwargs)
        try:
            output = compiled(*args, **kwargs)
        except (Unsupported, FailOnRecompileLimitHit) as error:  # raised for a whole graph alone
            reason = str(error).strip().splitlines()[0]
            raise UsageError(
                f"backend.compile_fullgraph: {type(module).__name__} cannot be compiled as one graph ({reason}); leave"
                " it out to compile the network's parts"
            ) from error
        # The next call of a CUDA graph writes over the memory of what this one returned.
        return _copied(output) if mode in CUDA_GRAPHS else output

    module.forward = forward


def _observed(module: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _copied(output: Any) -> Any:
    return type(output)(map(_copied, output)) if isinstance(output, tuple | list) else output.clone()
