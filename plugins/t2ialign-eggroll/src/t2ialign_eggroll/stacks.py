"""Products of a batch with the members' matrices M_i = C + E_i, exactly, in the form that moves the least memory.

shared        no perturbation: one product with C for everyone
materialised  C + E_i is formed in float32, cast, and applied by one batched product
factored      x C^T + (x v_i) u_i^T: E_i is never formed; for low-rank noise on matrices too large to stack
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from t2ialign_eggroll.noise import LowRank, Perturbation


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
        self._groups = {name: tuple(group) for group in alike.values() for name in group}
        self._kept: dict[tuple[tuple[str, ...], torch.dtype, int], Tensor] = {}
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
        group = self._groups[name]
        if not self.keeps(dtype, copies):
            return _form([self.stacks[name]], dtype, copies)[0]
        key = (group, dtype, copies)
        if key not in self._kept:
            self._kept[key] = _form([self.stacks[other] for other in group], dtype, copies)
        return self._kept[key][group.index(name)]


def _form(stacks: Sequence[Stack], dtype: torch.dtype, copies: int) -> Tensor:
    """(stacks, copies n, *shape) of stacks of one shape and form."""
    first = stacks[0]
    centres = torch.stack([stack.centre for stack in stacks])[:, None]
    own = [stack.noise for stack in stacks]
    if isinstance(first.noise, LowRank):
        factors = [(noise.u, noise.v) for noise in own if isinstance(noise, LowRank)]
        u, v = (torch.stack(side).flatten(0, 1) for side in zip(*factors, strict=True))
        matrices = centres.flatten(3).expand(-1, first.members, -1, -1).flatten(0, 1)
        formed = torch.baddbmm(matrices, u, v.mT).view(len(stacks), first.members, *first.centre.shape)
    elif first.noise is not None:
        formed = centres + torch.stack([noise.dense() for noise in own if noise is not None])
    else:
        formed = centres
    if first.scale != 1:
        formed = formed * first.scale
    formed = formed.to(dtype)
    return formed if copies == 1 else formed.repeat(1, copies, *[1] * first.centre.ndim)


@dataclass(frozen=True)
class Operator:
    """Multiplies (g, T, b) by g matrices: one for everyone, one each, or one for everyone plus own factors."""

    shared: Tensor | None = None
    own: Tensor | None = None
    u: Tensor | None = None
    v: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(g, T, b) -> (g, T, a)."""
        if self.own is not None:
            return torch.bmm(x, self.own.mT)
        assert self.shared is not None
        y = F.linear(x, self.shared)
        if self.u is not None and self.v is not None:
            y = y.baddbmm_(torch.bmm(x, self.v), self.u.mT)
        return y

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """y (g, T, a) += x (g, T, b) M^T, in place."""
        if self.own is not None:
            return y.baddbmm_(x, self.own.mT)
        assert self.shared is not None
        y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.shared.T)
        if self.u is not None and self.v is not None:
            y.baddbmm_(torch.bmm(x, self.v), self.u.mT)
        return y
