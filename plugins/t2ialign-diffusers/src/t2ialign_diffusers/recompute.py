"""Activation recomputation (gradient checkpointing) for any network that is a stack of blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from t2ialign.ranks.sharding import blocks


def recompute_blocks(module: nn.Module) -> int:
    """Keep only the inputs of every block for the backward pass, and compute the rest of it again there.

    A block is an element of an outermost ``nn.ModuleList``: a transformer's layers, an autoencoder's stages. Works in
    eval mode and for classes without an ``enable_gradient_checkpointing`` of their own; outputs and gradients stay
    the same, a forward without gradients costs nothing extra.

    Returns:
        The number of blocks.
    """
    count = 0
    for block in blocks(module):
        block.forward = _recomputed(block.forward)
        count += 1
    return count


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
