"""Products of a batch with the members' matrices M_i = C + E_i, exactly, in the form that moves the least memory.

shared        no perturbation: one product with C for everyone
materialised  C + E_i is formed in float32, cast, and applied by one batched product
factored      x C^T + (x v_i) u_i^T: E_i is never formed; for low-rank noise on matrices too large to stack

Both factors of a LoRA lie here as (r, channels), so that B is transposed: on a CPU, batched products with matrices of r
columns take up to twice as long as with matrices of r rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from t2ialign_eggroll.noise import Drawn, FullRank, LowRank, Perturbation


@dataclass(frozen=True)
class Factor:
    """A factor of a layer's LoRA: for n members the matrices (a, b) scale (centre + noise_i), n = 1 without noise.

    Attributes:
        centre: the parameter, (a, b) or a convolution kernel.
        noise: which of the perturbations are its own; the members share a factor that has none.
        scale: multiplies the result.
        transposed: the perturbations are those of the transpose (b, a).
    """

    centre: Tensor
    noise: str
    scale: float = 1.0
    transposed: bool = False


class Prepared:
    """The stacks of all layers, formed once per batch and not in every call, all of one shape at once.

    A stack holds thousands of numbers, and a device needs as long to start an operation as to make them, so it is the
    number of operations that counts: a few dozen for a network with 168 adapted layers of six shapes.

    Args:
        factors: name -> factor.
        noise: the members' own perturbations, sign and sigma included; those of one shape are of one kind.
        members: n.
        most_bytes: of all that is kept; where more is needed, every call forms its stack again.
    """

    def __init__(
        self, factors: Mapping[str, Factor], noise: Mapping[str, Perturbation], members: int, most_bytes: int
    ) -> None:
        self.factors, self.noise, self.most_bytes = factors, noise, most_bytes
        self.elements: dict[str, int] = {}  # numbers in each stack
        self._groups: dict[str, list[str]] = {}  # name -> those that are formed with it
        alike: dict[object, list[str]] = defaultdict(list)
        for name, factor in factors.items():
            centre, own = factor.centre, factor.noise in noise
            self.elements[name] = centre.numel() * (members if own else 1)
            self._groups[name] = alike[centre.shape, centre.dtype, factor.scale, own]
            self._groups[name].append(name)
        self._kept: dict[tuple[torch.dtype, int], dict[str, Tensor]] = defaultdict(dict)
        self._numbers = sum(self.elements.values())

    def dense(self, name: str) -> Tensor:
        """(n, *shape), n = 1 without noise, added in the parameter's own precision."""
        return self._stack(name, self.factors[name].centre.dtype, 1)

    def stack(self, name: str, dtype: torch.dtype) -> Tensor:
        """The stack of one layer, (n, a, b), n = 1 without noise."""
        return self._stack(name, dtype, 1).flatten(2)

    def keeps(self, dtype: torch.dtype, copies: int = 1) -> bool:
        """Whether all stacks fit into what may be kept."""
        return self._numbers * dtype.itemsize * copies <= self.most_bytes

    def operator(self, name: str, dtype: torch.dtype, copies: int, factored: bool) -> Operator:
        """The stack of one layer, cast and repeated for ``copies`` copies of the batch, ready to multiply.

        Args:
            factored: low-rank noise is not added to the centre.
        """
        factor = self.factors[name]
        if factor.noise not in self.noise:
            return Operator(shared=self._stack(name, dtype, 1)[0].flatten(1))
        if factored and isinstance(noise := self.noise[factor.noise], LowRank):
            noise = noise.transposed if factor.transposed else noise
            u, v = ((side * by).to(dtype).repeat(copies, 1, 1) for side, by in ((noise.u, factor.scale), (noise.v, 1)))
            return Operator(shared=(factor.centre * factor.scale).to(dtype).flatten(1), u=u, v=v)
        return Operator(own=self._stack(name, dtype, copies).flatten(2))

    def _stack(self, name: str, dtype: torch.dtype, copies: int) -> Tensor:
        if not self.keeps(dtype, copies):
            return self._formed([name], dtype, copies)[0]
        kept = self._kept[dtype, copies]
        if name not in kept:
            group = self._groups[name]
            kept.update(zip(group, self._formed(group, dtype, copies).unbind(), strict=True))
        return kept[name]

    def _formed(self, names: Sequence[str], dtype: torch.dtype, copies: int) -> Tensor:
        """The stacks of a group, (names, copies n, *shape)."""
        factors = [self.factors[name] for name in names]
        return _form(factors, self._together(factors), dtype, copies)

    def _together(self, factors: Sequence[Factor]) -> Perturbation | None:
        """The perturbations of a group, with an axis of the factors in front."""
        if factors[0].noise not in self.noise:
            return None
        if isinstance(self.noise, Drawn):
            names, transposed = zip(*((factor.noise, factor.transposed) for factor in factors), strict=True)
            if together := self.noise.together(names, transposed):
                return together
        given = [(self.noise[factor.noise], factor.transposed) for factor in factors]
        own = [noise.transposed if flip else noise for noise, flip in given]
        if low := [noise for noise in own if isinstance(noise, LowRank)]:
            return LowRank(torch.stack([e.u for e in low]), torch.stack([e.v for e in low]), low[0].shape)
        return FullRank(torch.stack([noise.dense() for noise in own]))


def _form(factors: Sequence[Factor], noise: Perturbation | None, dtype: torch.dtype, copies: int) -> Tensor:
    """(factors, copies n, *shape) of factors of one shape with their perturbations."""
    first = factors[0]
    formed = torch.stack([factor.centre for factor in factors])[:, None]
    if isinstance(noise, LowRank):  # (factors, n, a, k), (factors, n, b, k)
        formed = _outer(formed.flatten(3), noise.u, noise.v).unflatten(-1, first.centre.shape[1:])
    elif noise is not None:
        formed = formed + noise.noise
    if first.scale != 1:
        formed = formed * first.scale
    formed = formed.to(dtype)
    return formed if copies == 1 else formed.repeat(1, copies, *[1] * first.centre.ndim)


def _outer(centres: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """centre + u v^T for every member, (stacks, n, a, b)."""
    if u.shape[-1] == 1:  # element by element, which a CPU does five times faster than as so many tiny products
        return torch.addcmul(centres, u, v.mT)
    shape = (len(u), u.shape[1], *centres.shape[2:])
    return torch.baddbmm(centres.expand(shape).flatten(0, 1), u.flatten(0, 1), v.flatten(0, 1).mT).view(shape)


@dataclass(frozen=True)
class Operator:
    """g matrices M (r, channels), or one for everyone, or one for everyone plus own factors M_i = M + u_i v_i^T.

    Attributes:
        shared: (r, channels).
        own: (g, r, channels).
        u, v: (g, r, k) and (g, channels, k).
    """

    shared: Tensor | None = None
    own: Tensor | None = None
    u: Tensor | None = None
    v: Tensor | None = None

    def down(self, x: Tensor, groups: int) -> Tensor:
        """x M^T, (rows, ..., channels) -> (groups, T, r), the rows of a group one after another."""
        if self.own is not None:
            own = self.own
            if x.ndim == 3 and not x.is_contiguous():  # to copy a member's M for each row costs less than to copy x
                own = own if own.shape[0] == x.shape[0] else own.repeat_interleave(x.shape[0] // groups, 0)
            else:
                x = x.reshape(groups, -1, x.shape[-1])
            return torch.bmm(own, x.mT).mT.reshape(groups, -1, own.shape[1])
        assert self.shared is not None
        x = x.reshape(groups, -1, x.shape[-1])
        y = F.linear(x, self.shared)
        if self.u is not None and self.v is not None:
            y = y.baddbmm_(torch.bmm(x, self.v), self.u.mT)
        return y

    def add_up(self, y: Tensor, hidden: Tensor) -> Tensor:
        """y (g, T, channels) += hidden (g, T, r) M, in place."""
        if self.own is not None:
            return y.baddbmm_(hidden, self.own)
        assert self.shared is not None
        y.view(-1, y.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), self.shared)
        if self.u is not None and self.v is not None:
            y.baddbmm_(torch.bmm(hidden, self.u), self.v.mT)
        return y
