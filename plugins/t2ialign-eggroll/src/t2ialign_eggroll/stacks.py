"""Products of a batch with the members' matrices M_i = C + E_i, exactly, in the form that moves the least memory.

shared        no perturbation: one product with C for everyone
materialised  C + E_i is formed in float32, cast, and applied by one batched product
factored      x C^T + (x v_i) u_i^T: E_i is never formed; for low-rank noise on matrices too large to stack
"""

from __future__ import annotations

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

    def dense(self) -> Tensor:
        """(n, *shape), added in the parameter's own precision."""
        stack = self.centre[None] if self.noise is None else self.noise.added_to(self.centre)
        return stack if self.scale == 1 else stack * self.scale

    def elements(self, members: int) -> int:
        """Numbers in the materialised stack."""
        return self.centre.numel() * (1 if self.noise is None else members)

    def operator(self, dtype: torch.dtype, copies: int, factored: bool) -> Operator:
        """The stack, cast and repeated for ``copies`` copies of the batch, ready to multiply."""
        if self.noise is None:
            return Operator(shared=(self.centre * self.scale).to(dtype).flatten(1))
        if factored and isinstance(self.noise, LowRank):
            u, v = (self.noise.u * self.scale).to(dtype), self.noise.v.to(dtype)
            shared = (self.centre * self.scale).to(dtype).flatten(1)
            return Operator(shared=shared, u=u.repeat(copies, 1, 1), v=v.repeat(copies, 1, 1))
        return Operator(own=self.dense().to(dtype).flatten(2).repeat(copies, 1, 1))


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
