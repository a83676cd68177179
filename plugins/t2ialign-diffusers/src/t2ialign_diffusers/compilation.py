"""``torch.compile``, in place, for what a backend really calls: the repeated blocks of a network, and decoders.

A network's blocks are alike, so that one of them is compiled and all run what that gives. What is compiled is kept for
later processes in ``compiled`` of our cache folder, or where ``TORCHINDUCTOR_CACHE_DIR`` says.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign.errors import UsageError
from t2ialign.ranks.sharding import blocks
from t2ialign.storage.embeds import cache_root

log = logging.getLogger(__name__)
#: What compiles; the tests exchange it for one that is quick.
BACKEND = "inductor"
#: Graphs that one kind of block may need: base, LoRA, population and gradients, for batches and for a single image, and
#: each of that for every width that a UNet's blocks have. Past the limit torch would go on without compiling.
GRAPHS = 32
#: Modes that run on CUDA graphs.
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
OWN_CACHE = "t2ialign-compiled-"
CACHE = "TORCHINDUCTOR_CACHE_DIR"
COMPILERS = ("c++", "g++", "clang++", "cl")


def compile_blocks(network: nn.Module, mode: str, fullgraph: bool = False) -> int:
    """Compile the repeated blocks of a network, each in place, see ``compile_forward``; what is around them stays.

    Blocks are those of the classes that diffusers calls repeated, else the elements of the outermost lists of modules.

    Returns:
        The number of blocks.
    """
    names = getattr(network, "_repeated_blocks", None) or []
    found = [module for module in network.modules() if type(module).__name__ in names] or list(blocks(network))
    for block in found:
        compile_forward(block, mode, fullgraph)
    return len(found)


def compile_forward(module: nn.Module, mode: str, fullgraph: bool = False, network: nn.Module | None = None) -> None:
    """Compile the module's forward, on its first call, in place: class, parameters and their names stay.

    Adapters and replaced forwards of inner layers are seen whenever they come. Hooks on inner layers are not seen by
    torch.compile, so while there are any the module runs without. The size of a batch is no part of what is compiled,
    but for a batch of one, and while a layer says ``fixed_batch``, as those of a population do: that compiles for every
    size, since products of sizes that are all left open take minutes to trace.

    Args:
        mode: a mode of ``torch.compile``, or "decoder" for its default.
        fullgraph: whether a forward that is more than one graph is an error.
        network: for a decoder, what makes its latents: whose hooks and ``fixed_batch`` count as its own, since neither
            a measurement's few images nor sizes that a run does not have are worth a graph.

    Raises:
        UsageError: no C++ compiler is installed; when called, that a forward is more than the one graph asked for.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name):
        raise UsageError(f"backend.compile = '{mode}' needs a C++ compiler on the path: {', '.join(COMPILERS)}")
    mode = "default" if mode == "decoder" else mode
    os.environ.setdefault(CACHE, str(cache_root() / "compiled"))
    import torch._dynamo.config as limits
    import torch._inductor.config as inductor
    import torch.fx.experimental._config as shapes
    from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, Unsupported

    # One C++ file a graph compiles in a third of the time that one for every kernel takes.
    inductor.cpp_wrapper = next(module.parameters()).device.type == "cpu"
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    # Else a batch that is by chance as large as a width counts as that width, and the next batch compiles again.
    shapes.use_duck_shape = False
    eager, watched = module.forward, [module, *([network] if network else [])]
    compiled = torch.compile(eager, mode=mode, backend=BACKEND, fullgraph=fullgraph, dynamic=False)

    @wraps(eager)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if any(map(_observed, watched)):
            return eager(*args, **kwargs)
        given = [*args, *kwargs.values()]
        any_size = not any(getattr(part, "fixed_batch", False) for whole in watched for part in whole.modules())
        given = [_prepared(value, any_size) for value in given]
        named = dict(zip(kwargs, given[len(args) :], strict=True))
        try:
            try:
                output = compiled(*given[: len(args)], **named)
            except BackendCompilerFailed as error:
                _leave_cache(error)
                output = compiled(*given[: len(args)], **named)
        except (Unsupported, FailOnRecompileLimitHit) as error:  # raised for a whole graph alone
            reason = str(error).strip().splitlines()[0]
            raise UsageError(
                f"backend.compile_fullgraph: {type(module).__name__} cannot be compiled as one graph ({reason}); leave"
                " it out to compile the network's parts"
            ) from error
        # The next call of a CUDA graph writes over the memory of what this one returned.
        return _copied(output) if mode in CUDA_GRAPHS else output

    module.forward = forward


def compiling(on: bool) -> AbstractContextManager[None]:
    """Inside, what is called for the first time is compiled, or else runs as it is, and what was compiled is used."""
    return torch.compiler.set_stance("default" if on else "eager_on_recompile")


def _leave_cache(error: Exception) -> None:
    """Go on with a cache of this process's own, once: a process that is killed while it compiles leaves half a file."""
    used, reason = os.environ[CACHE], str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
    if Path(used).name.startswith(OWN_CACHE):
        raise UsageError(f"backend.compile: torch.compile failed ({reason}); set it to 'none'") from error
    os.environ[CACHE] = tempfile.mkdtemp(prefix=OWN_CACHE)
    log.warning("what torch.compile left in %s cannot be used (%s): compiling anew; delete that folder", used, reason)
    torch._dynamo.reset()


def _prepared(value: Any, any_size: bool) -> Any:
    """An input with the strides of every other call, whose first dimension may have ``any_size``."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    value = value.contiguous()
    if any_size and value.shape[0] > 1:
        torch._dynamo.maybe_mark_dynamic(value, 0)
    return value


def _observed(module: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _copied(output: Any) -> Any:
    return type(output)(map(_copied, output)) if isinstance(output, tuple | list) else output.clone()
