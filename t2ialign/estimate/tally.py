"""Bytes that live at once, and operations, of whatever runs inside; on the meta device as on a real one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Tally(TorchDispatchMode):
    """Counts storages that operations make, until they are freed.

    Attributes:
        peak: most bytes alive at one moment. What was there before does not count.
        operations: floating-point operations of products, convolutions and attention (a multiply-add is two).
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.operations = 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            self._count(tensor, given)
        if (formula := flop_registry.get(function._overloadpacket)) is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        elif function._overloadpacket is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            queries, keys = args[:2]
            self.operations += 4 * queries.numel() * keys.shape[-2]
        return result

    def _count(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        name = storage._cdata
        if name in self._known or name in given:
            return
        size = storage.nbytes()
        self._known.add(name)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, name, size).atexit = False

    def _free(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.live -= size


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (part.repeat_interleave(groups, -3) for part in (key, value))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, scale=scale
    )[0]


@contextmanager
def tallied() -> Iterator[Tally]:
    """Inside, everything is counted."""
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, *others: Any, **more: Any) -> Tensor:
        """On the meta device as the fused kernels do it: no matrix of all pairs is made."""
        return (_fused if query.is_meta else plain)(query, *others, **more)

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attention),
        Tally() as tally,
    ):  # a mode misses recomputation
        yield tally


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
