"""Perturbations of unit variance, regenerated from (seed, step, pair) and never stored for a whole population.

EGGROLL (arXiv 2511.16652) perturbs a matrix W (a x b) by sigma E with E = U V^T / sqrt(k), U (a, k) and V (b, k)
standard normal: every entry of E has mean 0 and variance 1, and E has rank at most k. Vectors get full-rank noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign import seeding


@dataclass(frozen=True)
class LowRank:
    """A stack of P perturbations E_p = u_p v_p^T of one parameter; 1 / sqrt(k) is folded into u.

    Attributes:
        u: (P, a, k).
        v: (P, b, k).
        shape: the parameter's shape; a kernel (a, c, h, w) counts as the matrix (a, c h w).
    """

    u: Tensor
    v: Tensor
    shape: torch.Size

    def select(self, index: Tensor, factor: Tensor) -> LowRank:
        """factor_i E_index[i] for every i: the members' own perturbations, sign and scale included."""
        return LowRank(self.u[index] * factor[:, None, None], self.v[index], self.shape)

    @property
    def transposed(self) -> LowRank:
        """E_p^T of a matrix."""
        return LowRank(self.v, self.u, self.shape[::-1])

    def dense(self) -> Tensor:
        """(P, *shape)."""
        return (self.u @ self.v.mT).reshape(-1, *self.shape)

    def added_to(self, centre: Tensor) -> Tensor:
        """centre + E_p, (P, *shape)."""
        return torch.baddbmm(centre.flatten(1), self.u, self.v.mT).view(-1, *self.shape)

    def contract(self, weights: Tensor) -> Tensor:
        """sum_p weights_p E_p as one product (a, P k)(P k, b); weights (P,)."""
        return torch.tensordot(self.u * weights[:, None, None], self.v, dims=([0, 2], [0, 2])).reshape(self.shape)

    def to(self, dtype: torch.dtype) -> LowRank:
        return LowRank(self.u.to(dtype), self.v.to(dtype), self.shape)

    def sign(self) -> LowRank:
        """The variant that updates with the signs of the factors only."""
        return LowRank(self.u.sign() / math.sqrt(self.u.shape[-1]), self.v.sign(), self.shape)


@dataclass(frozen=True)
class FullRank:
    """A stack of P Gaussian perturbations of one parameter.

    Attributes:
        noise: (P, *shape).
    """

    noise: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.noise.shape[1:]

    def select(self, index: Tensor, factor: Tensor) -> FullRank:
        return FullRank(self.noise[index] * factor.view(-1, *[1] * len(self.shape)))

    @property
    def transposed(self) -> FullRank:
        return FullRank(self.noise.mT)

    def dense(self) -> Tensor:
        return self.noise

    def added_to(self, centre: Tensor) -> Tensor:
        return centre + self.noise

    def contract(self, weights: Tensor) -> Tensor:
        return torch.tensordot(weights.to(self.noise), self.noise, dims=1)

    def to(self, dtype: torch.dtype) -> FullRank:
        return FullRank(self.noise.to(dtype))

    def sign(self) -> FullRank:
        return FullRank(self.noise.sign())


Perturbation = LowRank | FullRank


class Drawn(Mapping[str, Perturbation]):
    """Perturbations by parameter, cut from one tensor when they are asked for.

    Attributes:
        flat: (n, all numbers); 1 / sqrt(k) is in it.
    """

    def __init__(self, noise: Noise, flat: Tensor) -> None:
        self.noise, self.flat = noise, flat
        self._pieces = flat.split(noise.lengths, dim=1)

    def __getitem__(self, name: str) -> Perturbation:
        return self.noise.shaped(name, *(self._pieces[i] for i in self.noise.places[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.noise.shapes)

    def __len__(self) -> int:
        return len(self.noise.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.noise.shapes

    def together(self, names: Sequence[str], transposed: Sequence[bool]) -> Perturbation | None:
        """Low-rank ones of one shape after ``transposed``, with an axis of the parameters in front."""
        places = [self.noise.places[name][:: -1 if flip else 1] for name, flip in zip(names, transposed, strict=True)]
        if len(places[0]) == 1:
            return None
        sides = (torch.stack([self._pieces[i] for i in side]) for side in zip(*places, strict=True))
        return self.noise.shaped(names[0], *sides)

    def members(self, antithetic: bool, members: slice, sigma: Mapping[str, float]) -> Drawn:
        """sign_i sigma E_pair[i] of some members, counted from the first of these pairs, of all parameters at once."""
        rows = [self.noise.row(sigma, self.flat.device)]
        if antithetic:
            rows.append(rows[0] * self.noise.row(dict.fromkeys(self, -1.0), self.flat.device))
        own = (self.flat[:, None] * torch.stack(rows)).flatten(0, 1)
        return Drawn(self.noise, own[members])


#: Pair numbers -> the perturbations of those pairs, by parameter.
Draw = Callable[[Sequence[int]], Mapping[str, Perturbation]]


class Noise:
    """The perturbations of a set of parameters, cut from one flat standard-normal draw per pair.

    One draw per pair makes layers independent of each other, and any pair can be drawn again alone.

    Args:
        shapes: parameter name -> shape; the order is part of the definition.
        rank: k of the low-rank form for parameters with two or more axes; None for full-rank noise everywhere.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], rank: int | None = 1) -> None:
        if rank is not None and rank < 1:
            raise ValueError(f"the noise rank must be at least 1, not {rank}")
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.rank = rank
        #: Numbers of each parameter's u and v, or of its full-rank noise, one after another, and whose are where.
        self.lengths: list[int] = []
        self.places: dict[str, range] = {}
        for name, shape in self.shapes.items():
            pieces = self._pieces(shape)
            self.places[name] = range(len(self.lengths), len(self.lengths) + len(pieces))
            self.lengths += pieces
        self._rows: dict[tuple[tuple[float, ...], str], Tensor] = {}

    def _pieces(self, shape: torch.Size) -> list[int]:
        """Numbers of u and of v, or of full-rank noise."""
        if self.rank is None or len(shape) < 2:
            return [shape.numel()]
        return [shape[0] * self.rank, shape[1:].numel() * self.rank]

    @property
    def size(self) -> int:
        """Standard-normal numbers per pair."""
        return sum(self.lengths)

    def draw(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> Drawn:
        """The perturbations of P pairs, float32; pair p depends on seeds[p] and the kind of device alone.

        Drawn on the device: a population on a large network needs tens of millions of numbers a step, for which a GPU
        would wait.
        """
        flat = torch.empty(len(seeds), self.size, device=device)
        source = torch.Generator(device)
        for row, seed in zip(flat, seeds, strict=True):
            row.normal_(generator=source.manual_seed(seed))
        if self.rank is not None and self.rank > 1:
            roots = {name: math.sqrt(self.rank) if self._low(shape) else 1.0 for name, shape in self.shapes.items()}
            flat.div_(self.row(roots, device))
        return Drawn(self, flat)

    def row(self, values: Mapping[str, float], device: torch.device | str) -> Tensor:
        """A number for each of ``size``: a parameter's value where it is a factor u or full-rank noise, 1 for v."""
        key = (tuple(values[name] for name in self.shapes), str(device))
        if key not in self._rows:
            while len(self._rows) >= 4:
                self._rows.pop(next(iter(self._rows)))
            numbers: list[float] = []
            for name, places in self.places.items():
                numbers += [values[name], 1.0][: len(places)]
            self._rows[key] = torch.tensor(numbers).repeat_interleave(torch.tensor(self.lengths)).to(device)
        return self._rows[key]

    def _low(self, shape: torch.Size) -> bool:
        return self.rank is not None and len(shape) >= 2

    def of(self, seed: int, step: int, device: torch.device | str = "cpu") -> Draw:
        """The noise of one step, pair numbers to perturbations."""
        return lambda pairs: self.draw([seeding.derive(seed, "perturbation", step, p) for p in pairs], device)

    def shaped(self, name: str, first: Tensor, second: Tensor | None = None) -> Perturbation:
        """A parameter's numbers (..., n, numbers) as its perturbations."""
        shape, lead = self.shapes[name], first.shape[:-1]
        if second is None:
            return FullRank(first.view(*lead, *shape))
        assert self.rank is not None
        return LowRank(first.view(*lead, -1, self.rank), second.view(*lead, -1, self.rank), shape)


@dataclass(frozen=True)
class Members:
    """Who is who in a population: member i is sign_i E_pair[i].

    With ``antithetic`` members 2p and 2p + 1 are +E_p and -E_p, and the last member of an odd population is an
    unpaired +E; without, every member has a pair number of its own.
    """

    count: int
    antithetic: bool = True

    @property
    def pairs(self) -> int:
        return (self.count + 1) // 2 if self.antithetic else self.count

    def pair(self, members: slice, device: torch.device | str = "cpu") -> Tensor:
        """Pair numbers (n,) of some members."""
        index = torch.arange(self.count, device=device)[members]
        return index // 2 if self.antithetic else index

    def sign(self, members: slice, device: torch.device | str = "cpu") -> Tensor:
        """Signs (n,), float32."""
        index = torch.arange(self.count, device=device)[members]
        return 1.0 - 2.0 * (index % 2) if self.antithetic else torch.ones(len(index), device=device)

    def draw(
        self, draw: Draw, members: slice, device: torch.device | str = "cpu", sigma: Mapping[str, float] | None = None
    ) -> Mapping[str, Perturbation]:
        """The perturbations sign_i sigma E_pair[i] of some members, each pair drawn once.

        Args:
            draw: gives the perturbations of any pairs.
            sigma: scale of each parameter's perturbation; default 1.
        """
        each = 2 if self.antithetic else 1
        first, last = members.start // each, (members.stop - 1) // each
        drawn = draw(range(first, last + 1))
        sigma = dict.fromkeys(drawn, 1.0) if sigma is None else sigma
        if isinstance(drawn, Drawn):
            start = first * each
            return drawn.members(self.antithetic, slice(members.start - start, members.stop - start), sigma)
        index, sign = self.pair(members, device) - first, self.sign(members, device)
        return {name: perturbation.select(index, sign * sigma[name]) for name, perturbation in drawn.items()}
