"""Exact evaluation of many members in one batch: every image of the batch goes through its own member's weights.

A layer W with LoRA factors A (r, in), B (out, r) and scale s computes for the images of member i

    y_i = W x_i + c + s (B + E_B,i)(A + E_A,i) x_i

with the second-order term E_B,i E_A,i kept. W x is one product for all members; only the skinny products are batched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from t2ialign.errors import UsageError
from t2ialign.tensors import rows
from t2ialign_eggroll.noise import FullRank, LowRank, Perturbation
from t2ialign_eggroll.stacks import Factor, Operator, Prepared

Form = Literal["auto", "materialised", "factored", "merged"]
#: Materialised factors of one layer may take this many bytes before "auto" turns to the factored form.
STACK_BYTES = 64 * 2**20
#: Factors of all layers that are kept for the length of a batch.
PREPARED_BYTES = 2**30


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

    Attributes:
        name: module path.
        base: the layer that all members share, a linear layer or a convolution.
        prepared: the members' factors of all layers as "<path>.a" and "<path>.b", any scale folded into b; the b of a
            linear layer transposed, (r, out).
        alike: the linear layers whose weights have the precision of this one's, itself included; they share ``found``.
        factors: a (n or 1, r, in) and b (n or 1, r, out) for compiled code, see ``compiled_factors``.
    """

    name: str
    base: nn.Module
    prepared: Prepared
    chunk: Chunk
    form: Form
    alike: list[str]
    found: dict[tuple[torch.dtype, int], dict[str, list[Operator]]] = field(compare=False, repr=False)
    factors: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        index = rows.image_index()
        if index is not None:
            return self._indexed(x, self.base(x, *args, **kwargs), self.chunk.member_of(index))
        if self.factors is not None and torch.compiler.is_compiling():
            return self._compiled(x, *self.factors)
        copies = self.chunk.copies(x.shape[0], self.name)
        if not isinstance(self.base, nn.Linear):
            return self._convolution(x, self.base(x, *args, **kwargs), copies)
        if self.form == "merged" and self._merges(self.base, x):
            return self._through_merged(self.base, x, copies)
        y = self.base(x, *args, **kwargs).contiguous()
        a, b = self._operators(y.dtype, copies)
        b.add_up(self._grouped(y, copies), a.down(x.to(y.dtype), copies * self.chunk.members))
        return y

    def _compiled(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The same products from tensors alone: what the layer is called is no part of what is compiled, so that one
        compiled block serves all blocks."""
        y, x = self.base(x), x.to(a.dtype)
        groups = len(x) // self.chunk.images
        copies = groups // self.chunk.members
        if len(x) != copies * self.chunk.members * self.chunk.images:
            self.chunk.copies(len(x), self.name)  # tells what is wrong
        if len(a) == 1:
            hidden = F.linear(x, a[0]).reshape(groups, -1, a.shape[1])
        else:
            hidden = torch.bmm(a.repeat(copies, 1, 1), x.reshape(groups, -1, x.shape[-1]).mT).mT
        if len(b) == 1:
            return y + (hidden @ b[0]).view(y.shape)
        grouped = y.reshape(groups, -1, y.shape[-1])
        return torch.baddbmm(grouped, hidden, b.repeat(copies, 1, 1)).view(y.shape)

    def _grouped(self, x: Tensor, copies: int) -> Tensor:
        """(rows, ..., channels) -> (copies members, rows of one member, channels)."""
        return x.reshape(copies * self.chunk.members, -1, x.shape[-1])

    def _operators(self, dtype: torch.dtype, copies: int) -> list[Operator]:
        """Those of both factors; where they are kept, the first call finds them for all layers like this.

        Python that runs between the large products of a network takes several times as long as Python in a row.
        """
        if (found := self.found.get((dtype, copies))) is not None:
            return found[self.name]
        if not self.prepared.keeps(dtype, copies):
            return self._operators_of(self.name, dtype, copies)
        self.found[dtype, copies] = {name: self._operators_of(name, dtype, copies) for name in self.alike}
        return self.found[dtype, copies][self.name]

    def _operators_of(self, layer: str, dtype: torch.dtype, copies: int) -> list[Operator]:
        names = f"{layer}.a", f"{layer}.b"
        large = sum(self.prepared.elements[name] for name in names) * dtype.itemsize > STACK_BYTES
        factored = self.form == "factored" or (self.form == "auto" and large)
        return [self.prepared.operator(name, dtype, copies, factored) for name in names]

    def _dense(self) -> tuple[Tensor, Tensor]:
        """Both stacks in the layer's own layout, (n, *shape) or (1, *shape)."""
        a, b = self.prepared.dense(f"{self.name}.a"), self.prepared.dense(f"{self.name}.b")
        return a, b.mT if isinstance(self.base, nn.Linear) else b

    def _merges(self, base: nn.Linear, x: Tensor) -> bool:
        """Whether the members' deltas can be folded into copies of W, as ``form`` may ask for.

        Only where W is float32 or wider, since sigma E would drown in the rounding of a 16-bit W. "auto" never does: n
        products with a weight each took longer than one product and two skinny ones in all that was measured.
        """
        weight = base.weight
        quantised = type(base) is not nn.Linear or type(weight) is not nn.Parameter
        return not quantised and weight.dtype.itemsize >= 4 and x.dtype == weight.dtype

    def _through_merged(self, base: nn.Linear, x: Tensor, copies: int) -> Tensor:
        members = self.chunk.members
        a, b = (stack.expand(members, -1, -1) for stack in self._dense())
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
        a, b = (stack.to(y.dtype).flatten(2) for stack in self._dense())
        a, b = a.expand(self.chunk.members, -1, -1), b.expand(self.chunk.members, -1, -1)
        hidden = F.linear(x.to(y.dtype), a.flatten(0, 1)).unflatten(-1, (self.chunk.members, -1))
        own = F.one_hot(member.to(x.device), self.chunk.members).to(y.dtype)
        own = own.view(len(x), *[1] * (x.ndim - 2), self.chunk.members, 1)
        return y + (hidden * own).flatten(-2) @ b.mT.flatten(0, 1)

    def _convolution(self, x: Tensor, y: Tensor, copies: int) -> Tensor:
        """Grouped convolution with one group per member: images of a member share its kernels."""
        groups = copies * self.chunk.members
        convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
        a, b = (s.to(y.dtype).expand(self.chunk.members, *s.shape[1:]) for s in self._dense())
        a, b = (k.repeat(copies, *[1] * (k.ndim - 1)).flatten(0, 1) for k in (a, b))

        def by_member(z: Tensor) -> Tensor:  # (rows, c, ...) -> (images, members c, ...)
            return z.unflatten(0, (groups, self.chunk.images)).transpose(0, 1).flatten(1, 2)

        options = {k: getattr(self.base, k) for k in ("stride", "padding", "dilation")}
        hidden = convolve(by_member(x.to(y.dtype)), a, groups=groups, **options)
        delta = convolve(hidden, b, groups=groups)
        return y + delta.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


@contextmanager
def lora_population(
    layers: Mapping[str, LoraLayer],
    noise: Mapping[str, Perturbation],
    chunk: Chunk,
    form: Form = "auto",
    compiled: bool = False,
) -> Iterator[None]:
    """Inside, the adapted layers give every image its own member's LoRA; parameters are never written.

    Args:
        layers: module path -> peft layer.
        noise: "<path>.lora_A.weight" / "<path>.lora_B.weight" -> the members' perturbations (n, ...), sign and sigma
            included; a factor without an entry is shared.
        chunk: what the batch holds.
        form: how the products are made; "auto" weighs memory traffic.
        compiled: whether the layers run in compiled code.
    """
    bases = {name: layer.get_base_layer() for name, layer in layers.items()}
    factors: dict[str, Factor] = {}
    for name, layer in layers.items():
        adapter = _single_adapter(name, layer)
        a, b = (factor[adapter].weight.detach() for factor in (layer.lora_A, layer.lora_B))
        flat = isinstance(bases[name], nn.Linear)
        factors[f"{name}.a"] = Factor(a, f"{name}.lora_A.weight")
        scale = float(layer.scaling[adapter])
        factors[f"{name}.b"] = Factor(b.T if flat else b, f"{name}.lora_B.weight", scale, transposed=flat)
    prepared = Prepared(factors, noise, chunk.members, PREPARED_BYTES)
    with patched(layers, _forwards(bases, prepared, chunk, form, compiled)):
        yield


@contextmanager
def weight_population(
    layers: Mapping[str, LoraLayer],
    centre: Callable[[str], Tensor],
    noise: Mapping[str, Perturbation],
    chunk: Chunk,
    form: Form = "auto",
    compiled: bool = False,
) -> Iterator[None]:
    """Inside, the adapted layers drop their LoRA, have the weight ``centre(path)`` and the members' own noise on it.

    A low-rank perturbation u v^T of W is a LoRA with A = v^T and B = u, so this is ``lora_population`` on other layers.

    Args:
        centre: module path -> weight (out, in), any precision.
        noise: "<path>.weight" -> the members' low-rank perturbations, sign and sigma included.
    """
    bases: dict[str, nn.Linear] = {}
    factors: dict[str, Factor] = {}
    own: dict[str, Perturbation] = {}
    for name, layer in layers.items():
        original = layer.get_base_layer()
        base = nn.Linear(original.in_features, original.out_features, bias=False, device="meta")
        base.weight = nn.Parameter(centre(name).to(original.weight.dtype), requires_grad=False)
        base.bias = original.bias
        drawn = noise[f"{name}.weight"]
        assert isinstance(drawn, LowRank)
        bases[name] = base
        for path, factor in ((f"{name}.a", drawn.v.mT), (f"{name}.b", drawn.u.mT)):
            factors[path], own[path] = Factor(factor.new_zeros(factor.shape[1:]), path), FullRank(factor)
    prepared = Prepared(factors, own, chunk.members, PREPARED_BYTES)
    with patched(layers, _forwards(bases, prepared, chunk, form, compiled)):
        yield


def _forwards(
    bases: Mapping[str, nn.Module], prepared: Prepared, chunk: Chunk, form: Form, compiled: bool
) -> dict[str, LayerPopulation]:
    whole = compiled and form in ("auto", "materialised")
    alike: dict[object, list[str]] = defaultdict(list)
    found: dict[object, dict[tuple[torch.dtype, int], dict[str, list[Operator]]]] = defaultdict(dict)
    made = {}
    for name, base in bases.items():
        kind = base.weight.dtype if isinstance(base, nn.Linear) else name
        alike[kind].append(name)
        factors = compiled_factors(name, base, prepared) if whole else None
        made[name] = LayerPopulation(name, base, prepared, chunk, form, alike[kind], found[kind], factors)
    return made


def compiled_factors(name: str, base: nn.Module, prepared: Prepared) -> tuple[Tensor, Tensor] | None:
    """A linear layer's factors, made before compiled code runs; None where they are too large to be kept, or where the
    layer is of another kind."""
    if type(base) is not nn.Linear or not base.weight.is_floating_point() or not prepared.keeps(base.weight.dtype):
        return None
    return prepared.stack(f"{name}.a", base.weight.dtype), prepared.stack(f"{name}.b", base.weight.dtype)


@cache
def _populated(kind: type[nn.Module]) -> type[nn.Module]:
    """A layer class whose forward is that of the layer's ``population``.

    torch.compile compiles again for every object that it finds as a forward, but not for layers of one class whose
    objects are alike.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.population(*args, **kwargs)
        return result

    return type(kind.__name__, (kind,), {"forward": forward, "fixed_batch": True, "__module__": kind.__module__})


@contextmanager
def patched(layers: Mapping[str, nn.Module], forwards: Mapping[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Inside, the layers' forwards are replaced."""
    kinds = {name: type(layer) for name, layer in layers.items()}
    own = {name: layer.__dict__.pop("forward") for name, layer in layers.items() if "forward" in layer.__dict__}
    try:
        for name, layer in layers.items():
            layer.__dict__["population"] = forwards[name]
            layer.__class__ = _populated(kinds[name])  # type: ignore[arg-type]
        yield
    finally:
        for name, layer in layers.items():
            layer.__class__ = kinds[name]
            layer.__dict__.pop("population", None)  # the noise must not outlive the batch
            if name in own:
                layer.__dict__["forward"] = own[name]


def _single_adapter(name: str, layer: LoraLayer) -> str:
    active = layer.active_adapters
    if len(active) != 1 or layer.merged or getattr(layer, "lora_variant", {}):
        raise UsageError(
            f"layer '{name}' needs exactly one plain LoRA adapter, active and not merged, for a population"
        )
    return active[0]
