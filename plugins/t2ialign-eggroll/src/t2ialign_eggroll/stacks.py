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

from t2ialign_eggroll.noise import FullRank, LowRank, Perturbation


@dataclass(frozen=True)
class Stack:
    """n matrices (a, b) = scale (centre + noise_i), n = 1 without noise.

    Attributes:
        centre: the parameter, (a, b) or a convolution kernel.
        noise: the members' own perturbations, sign and sigma included; None when the members share the matrix.
        scale: multiplies the result.
    """

    centre: Tensor
    noise: Perturbation | None = None
    scale: float = 1.0

    @property
    def members(self) -> int:
        """n: of how many matrices it consists."""
        return 1 if self.noise is None else len(self.noise.u if isinstance(self.noise, LowRank) else self.noise.noise)

    @property
    def elements(self) -> int:
        """Numbers in the materialised stack."""
        return self.centre.numel() * self.members

    @property
    def transposed(self) -> Stack:
        """The stack of the transposes (b, a)."""
        noise = self.noise
        if isinstance(noise, LowRank):
            noise = LowRank(noise.v, noise.u, noise.shape[::-1])
        elif noise is not None:
            noise = FullRank(noise.noise.mT)
        return Stack(self.centre.T, noise, self.scale)

    def factors(self, dtype: torch.dtype, copies: int) -> Operator:
        """The stack as centre and low-rank noise, cast and repeated for ``copies`` copies of the batch."""
        assert isinstance(self.noise, LowRank)
        u, v = (self.noise.u * self.scale).to(dtype), self.noise.v.to(dtype)
        shared = (self.centre * self.scale).to(dtype).flatten(1)
        return Operator(shared=shared, u=u.repeat(copies, 1, 1), v=v.repeat(copies, 1, 1))


class Prepared:
    """The stacks of all layers, formed once per batch and not in every call, all of one shape at once.

    A stack holds thousands of numbers, and a device needs as long to start an operation as to make them, so it is the
    number of operations that counts: a few dozen for a network with 168 adapted layers of six shapes.

    Args:
        stacks: name -> stack.
        most_bytes: of all that is kept; where more is needed, every call forms its stack again.
    """

    def __init__(self, stacks: Mapping[str, Stack], most_bytes: int) -> None:
        self.stacks, self.most_bytes = stacks, most_bytes
        alike: dict[object, list[str]] = defaultdict(list)
        for name, stack in stacks.items():
            noise = stack.noise
            form = noise.u.shape if isinstance(noise, LowRank) else noise and noise.shape
            alike[stack.centre.shape, stack.centre.dtype, form, stack.scale].append(name)
        self._groups = list(alike.values())
        self._place = {
            name: (number, row) for number, group in enumerate(self._groups) for row, name in enumerate(group)
        }
        self._kept: dict[tuple[int, torch.dtype, int], Tensor] = {}
        self._numbers = sum(stack.elements for stack in stacks.values())

    def dense(self, name: str) -> Tensor:
        """(n, *shape), n = 1 without noise, added in the parameter's own precision."""
        return self._stack(name, self.stacks[name].centre.dtype, 1)

    def stack(self, name: str, dtype: torch.dtype) -> Tensor:
        """The stack of one layer, (n, a, b), n = 1 without noise."""
        return self._stack(name, dtype, 1).flatten(2)

    def keeps(self, dtype: torch.dtype, copies: int = 1) -> bool:
        """Whether all stacks fit into what may be kept."""
        return self._numbers * dtype.itemsize * copies <= self.most_bytes

    def operator(self, name: str, dtype: torch.dtype, copies: int) -> Operator:
        """The stack of one layer, cast and repeated for ``copies`` copies of the batch, ready to multiply."""
        if self.stacks[name].noise is None:
            return Operator(shared=self._stack(name, dtype, 1)[0].flatten(1))
        return Operator(own=self._stack(name, dtype, copies).flatten(2))

    def _stack(self, name: str, dtype: torch.dtype, copies: int) -> Tensor:
        if not self.keeps(dtype, copies):
            return _form([self.stacks[name]], dtype, copies)[0]
        number, row = self._place[name]
        key = (number, dtype, copies)
        if key not in self._kept:
            self._kept[key] = _form([self.stacks[other] for other in self._groups[number]], dtype, copies)
        return self._kept[key][row]


def _form(stacks: Sequence[Stack], dtype: torch.dtype, copies: int) -> Tensor:
    """(stacks, copies n, *shape) of stacks of one shape and form."""
    first = stacks[0]
    centres = torch.stack([stack.centre for stack in stacks])[:, None]
    own = [stack.noise for stack in stacks]
    if isinstance(first.noise, LowRank):
        factors = [(noise.u, noise.v) for noise in own if isinstance(noise, LowRank)]
        u, v = (torch.stack(side) for side in zip(*factors, strict=True))  # (stacks, n, a, k), (stacks, n, b, k)
        formed = _outer(centres.flatten(3), u, v).view(len(stacks), first.members, *first.centre.shape)
    elif first.noise is not None:
        formed = centres + torch.stack([noise.dense() for noise in own if noise is not None])
    else:
        formed = centres
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

    def down(self, x: Tensor) -> Tensor:
        """x M^T, (g, T, channels) -> (g, T, r)."""
        if self.own is not None:
            return torch.bmm(self.own, x.mT).mT
        assert self.shared is not None
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
