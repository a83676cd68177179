"""Exact evaluation of many members in one batch: every image of the batch goes through its own member's weights.

A layer W with LoRA factors A (r, in), B (out, r) and scale s computes for the images of member i

    y_i = W x_i + c + s (B + E_B,i)(A + E_A,i) x_i

with the second-order term E_B,i E_A,i kept. W x is one product for all members; only the skinny products are batched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from t2ialign.errors import UsageError
from t2ialign.tensors import rows
from t2ialign_eggroll.noise import FullRank, LowRank, Perturbation
from t2ialign_eggroll.stacks import Stack

Form = Literal["auto", "materialised", "factored", "merged"]
#: Materialised factors of one layer may take this many bytes before "auto" turns to the factored form.
STACK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Chunk:
    """What one batch holds: ``members`` members with ``images`` images each, member-major.

    A layer may see whole copies of the batch one after another (classifier-free guidance); anything else must be
    announced with ``t2ialign.tensors.rows``.
    """

    members: int
    images: int

    def copies(self, count: int, name: str) -> int:
        images = self.members * self.images
        if count % images or count < images:  # no divmod, which torch.compile cannot trace for sizes that vary
            raise UsageError(
                f"layer '{name}' sees {count} rows for a batch of {self.members * self.images} images, so its rows"
                " cannot be assigned to members; set optimizer.form = 'sequential', leave the layer out of"
                " backend.lora.targets, or let the backend announce its rows"
            )
        return count // images

    def member_of(self, image: Tensor) -> Tensor:
        return image // self.images


@dataclass(frozen=True)
class LayerPopulation:
    """The forward of one layer while a population is evaluated.

    The members' matrices are formed again in every call: next to the activations that is cheap, and no layer's stack
    stays in memory while the others run.

    Attributes:
        name: module path, for messages.
        base: the layer that all members share, a linear layer or a convolution.
        a, b: the members' factors, any scale folded into b.
    """

    name: str
    base: nn.Module
    a: Stack
    b: Stack
    chunk: Chunk
    form: Form

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        index = rows.image_index()
        if index is not None:
            return self._indexed(x, self.base(x, *args, **kwargs), self.chunk.member_of(index))
        copies = self.chunk.copies(len(x), self.name)
        if not isinstance(self.base, nn.Linear):
            return self._convolution(x, self.base(x, *args, **kwargs), copies)
        if self._merges(self.base, x):
            return self._through_merged(self.base, x, copies)
        y = self.base(x, *args, **kwargs).contiguous()
        factored = self.form == "factored" or (self.form == "auto" and self._stack_bytes(y.dtype) > STACK_BYTES)
        down, up = (stack.operator(y.dtype, copies, factored) for stack in (self.a, self.b))
        up.add_to(self._grouped(y, copies), down(self._grouped(x.to(y.dtype), copies)))
        return y

    def _grouped(self, x: Tensor, copies: int) -> Tensor:
        """(rows, ..., channels) -> (copies members, rows of one member, channels)."""
        return x.reshape(copies * self.chunk.members, -1, x.shape[-1])

    def _stack_bytes(self, dtype: torch.dtype) -> int:
        return (self.a.elements(self.chunk.members) + self.b.elements(self.chunk.members)) * dtype.itemsize

    def _merges(self, base: nn.Linear, x: Tensor) -> bool:
        """Whether to fold the members' deltas into copies of W.

        Only where W is float32 or wider, since sigma E would drown in the rounding of a 16-bit W. It pays when W_i is
        written and read in less memory traffic than x is read and y updated again: 2 ab < T (b + 2 a).
        """
        weight = base.weight
        quantised = type(base) is not nn.Linear or type(weight) is not nn.Parameter
        if quantised or weight.dtype.itemsize < 4 or x.dtype != weight.dtype:
            return False
        if self.form != "auto" or torch.is_autocast_enabled(x.device.type):
            return self.form == "merged"
        a, b = weight.shape
        rows_each = x.numel() // b // self.chunk.members
        fits = self.chunk.members * weight.numel() * weight.dtype.itemsize <= STACK_BYTES
        return fits and 2 * a * b <= rows_each * (b + 2 * a)

    def _through_merged(self, base: nn.Linear, x: Tensor, copies: int) -> Tensor:
        members = self.chunk.members
        a, b = (stack.dense().expand(members, -1, -1) for stack in (self.a, self.b))
        weight = torch.baddbmm(base.weight, b, a)
        if members == 1:
            return F.linear(x, weight[0], base.bias)
        grouped, weight = self._grouped(x, copies), weight.repeat(copies, 1, 1)
        y = torch.bmm(grouped, weight.mT) if base.bias is None else torch.baddbmm(base.bias, grouped, weight.mT)
        return y.view(*x.shape[:-1], -1)

    def _indexed(self, x: Tensor, y: Tensor, member: Tensor) -> Tensor:
        """Rows in any order: hidden values of all members, all but the own ones set to zero, then all B at once."""
        if len(member) != len(x):
            raise UsageError(f"layer '{self.name}' sees {len(x)} rows where {len(member)} were announced")
        a, b = (stack.dense().to(y.dtype).flatten(2) for stack in (self.a, self.b))
        a, b = a.expand(self.chunk.members, -1, -1), b.expand(self.chunk.members, -1, -1)
        hidden = F.linear(x.to(y.dtype), a.flatten(0, 1)).unflatten(-1, (self.chunk.members, -1))
        own = F.one_hot(member.to(x.device), self.chunk.members).to(y.dtype)
        own = own.view(len(x), *[1] * (x.ndim - 2), self.chunk.members, 1)
        return y + (hidden * own).flatten(-2) @ b.mT.flatten(0, 1)

    def _convolution(self, x: Tensor, y: Tensor, copies: int) -> Tensor:
        """Grouped convolution with one group per member: images of a member share its kernels."""
        groups = copies * self.chunk.members
        convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
        a, b = (s.dense().to(y.dtype).expand(self.chunk.members, *s.centre.shape) for s in (self.a, self.b))
        a, b = (k.repeat(copies, *[1] * (k.ndim - 1)).flatten(0, 1) for k in (a, b))

        def by_member(z: Tensor) -> Tensor:  # (rows, c, ...) -> (images, members c, ...)
            return z.unflatten(0, (groups, self.chunk.images)).transpose(0, 1).flatten(1, 2)

        options = {k: getattr(self.base, k) for k in ("stride", "padding", "dilation")}
        hidden = convolve(by_member(x.to(y.dtype)), a, groups=groups, **options)
        delta = convolve(hidden, b, groups=groups)
        return y + delta.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


@contextmanager
def lora_population(
    layers: Mapping[str, LoraLayer], noise: Mapping[str, Perturbation], chunk: Chunk, form: Form = "auto"
) -> Iterator[None]:
    """Inside, the adapted layers give every image its own member's LoRA; parameters are never written.

    Args:
        layers: module path -> peft layer.
        noise: "<path>.lora_A.weight" / "<path>.lora_B.weight" -> the members' perturbations (n, ...), sign and sigma
            included; a factor without an entry is shared.
        chunk: what the batch holds.
        form: how the products are made; "auto" weighs memory traffic.
    """
    forwards = {}
    for name, layer in layers.items():
        adapter = _single_adapter(name, layer)
        scale = float(layer.scaling[adapter])
        a = Stack(layer.lora_A[adapter].weight.detach(), noise.get(f"{name}.lora_A.weight"))
        b = Stack(layer.lora_B[adapter].weight.detach(), noise.get(f"{name}.lora_B.weight"), scale)
        forwards[name] = LayerPopulation(name, layer.get_base_layer(), a, b, chunk, form)
    with patched(layers, forwards):
        yield


@contextmanager
def weight_population(
    layers: Mapping[str, LoraLayer],
    centre: Callable[[str], Tensor],
    noise: Mapping[str, Perturbation],
    chunk: Chunk,
    form: Form = "auto",
) -> Iterator[None]:
    """Inside, the adapted layers drop their LoRA, have the weight ``centre(path)`` and the members' own noise on it.

    A low-rank perturbation u v^T of W is a LoRA with A = v^T and B = u, so this is ``lora_population`` on other layers.

    Args:
        centre: module path -> weight (out, in), any precision.
        noise: "<path>.weight" -> the members' low-rank perturbations, sign and sigma included.
    """
    forwards = {}
    for name, layer in layers.items():
        original = layer.get_base_layer()
        base = nn.Linear(original.in_features, original.out_features, bias=False, device="meta")
        base.weight = nn.Parameter(centre(name).to(original.weight.dtype), requires_grad=False)
        base.bias = original.bias
        own = noise[f"{name}.weight"]
        assert isinstance(own, LowRank)
        a, b = (Stack(m.new_zeros(m.shape[1:]), FullRank(m)) for m in (own.v.mT, own.u))
        forwards[name] = LayerPopulation(name, base, a, b, chunk, form)
    with patched(layers, forwards):
        yield


class Slot:
    """A layer's replaced forward: always the same object, with what it runs exchanged.

    torch.compile compiles again for every new object that it finds as a forward, but not for what such an object holds.
    """

    run: Callable[..., Tensor] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        assert self.run is not None
        return self.run(*args, **kwargs)


_slots: WeakKeyDictionary[nn.Module, Slot] = WeakKeyDictionary()


@contextmanager
def patched(layers: Mapping[str, nn.Module], forwards: Mapping[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Inside, the layers' forwards are replaced."""
    try:
        for name, layer in layers.items():
            slot = _slots.setdefault(layer, Slot())
            slot.run = forwards[name]
            layer.forward = slot
        yield
    finally:
        for layer in layers.values():
            if slot := layer.__dict__.pop("forward", None):
                slot.run = None  # the noise must not outlive the batch


def _single_adapter(name: str, layer: LoraLayer) -> str:
    active = layer.active_adapters
    if len(active) != 1 or layer.merged or getattr(layer, "lora_variant", {}):
        raise UsageError(
            f"layer '{name}' needs exactly one plain LoRA adapter, active and not merged, for a population"
        )
    return active[0]
