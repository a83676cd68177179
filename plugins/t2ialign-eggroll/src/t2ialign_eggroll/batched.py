"""Many members of any module in one forward, with ``torch.vmap``.

Inside, the model computes as if it had one member's weights, so residuals, reshapes and norms work unchanged. Linear,
convolution and embedding layers keep low-rank perturbations factored, W x + u (v^T x), so the product with W is made
once for all members, and only once at all where the input is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ialign_eggroll.noise import LowRank, Perturbation

#: What one member has of a perturbation: (u, v) or (dense,).
Factors = tuple[Tensor, ...]
#: Numbers of a linear layer's weight up to which every member has its own copy: 64 members take 1 MB in float32.
SMALL = 4096
CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


def evaluate_members(
    model: nn.Module, fitness: Callable[[nn.Module], Tensor], noise: Mapping[str, Perturbation]
) -> Tensor:
    """fitness(model) for every member at once, (n,).

    Args:
        model: its parameters are not changed.
        fitness: returns a scalar tensor and is made of torch operations that ``torch.vmap`` knows; no ``.item()``, no
            branch on values.
        noise: parameter name -> the members' perturbations (n, ...), sign and sigma included.
    """

    def member(factors: dict[str, Factors]) -> Tensor:
        with _as_member(model, factors):
            return fitness(model)

    stacks: dict[str, Factors] = {
        name: (e.u, e.v) if isinstance(e, LowRank) else (e.noise,) for name, e in noise.items()
    }
    try:
        return torch.vmap(member, randomness="same")(stacks)
    except RuntimeError as error:
        error.add_note("If torch.vmap cannot run the model or the fitness function, use batched=False.")
        raise


@contextmanager
def _as_member(model: nn.Module, factors: Mapping[str, Factors]) -> Iterator[None]:
    """Inside a vmap: the model with the member's weights."""
    names = {id(p): name for name, p in model.named_parameters()}
    forwards: dict[nn.Module, Callable[..., Tensor]] = {}
    dense: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in model.modules():
        own = {
            key: factors[names[id(p)]]
            for key, p in module._parameters.items()
            if p is not None and names[id(p)] in factors
        }
        if len(own.get("weight", ())) == 2 and (forward := _factored_forward(module)):
            u, v = own["weight"]
            (bias,) = own.get("bias", (None,))
            forwards[module] = partial(forward, module, u, v, bias)
        else:
            dense += [(module, key, p) for key, p in module._parameters.items() if p is not None and key in own]
    try:
        for module, forward in forwards.items():
            module.forward = forward
        for module, key, parameter in dense:
            module._parameters[key] = _dense(parameter, factors[names[id(parameter)]])
        yield
    finally:
        for module in forwards:
            del module.__dict__["forward"]
        for module, key, parameter in dense:
            module._parameters[key] = parameter


def _dense(parameter: Tensor, factors: Factors) -> Any:
    """One member's parameter in full."""
    if len(factors) == 1:
        return parameter + factors[0]
    u, v = factors
    return parameter + (u @ v.mT).view(parameter.shape)


def _factored_forward(module: Any) -> Callable[..., Tensor] | None:
    """The forward that keeps the weight's perturbation factored; None where the module has no such form or is small.

    A weight of 16 bits would round the noise, however small it is.
    """
    kind = type(module)
    if kind is nn.Linear:
        small = module.weight.numel() <= SMALL and module.weight.itemsize >= 4
        return None if small else _linear
    if kind is nn.Embedding and module.max_norm is None:
        return _embedding
    if kind in CONVOLUTIONS and module.groups == 1 and module.padding_mode == "zeros":
        return _convolution
    return None


def _linear(module: nn.Linear, u: Tensor, v: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    if bias is not None:  # one more column of u, met by a constant 1: the bias costs no pass of its own
        u = torch.cat([u, bias[:, None]], 1)
    return _LowRankLinear.apply(x, module.weight, module.bias, u, v)


def _embedding(module: nn.Embedding, u: Tensor, v: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    return F.embedding(index, module.weight) + F.embedding(index, u) @ v.mT


def _convolution(module: Any, u: Tensor, v: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    convolve = partial(
        CONVOLUTIONS[type(module)], stride=module.stride, padding=module.padding, dilation=module.dilation
    )
    y = convolve(x, module.weight, module.bias)
    hidden = convolve(x, v.mT.reshape(-1, *module.weight.shape[1:]))
    channels = hidden.ndim - module.weight.ndim + 1
    y = y + (u @ hidden.flatten(channels + 1)).view(y.shape)
    return y if bias is None else y + bias.view(-1, *[1] * (module.weight.ndim - 2))


class _LowRankLinear(torch.autograd.Function):
    """x W^T + c + (x v) u^T, in which u may have one more column than v for a change of the bias c.

    A function of its own because its batching rule beats the generic one: for a shared x all members' x v are one
    product, and the correction is added while the members' outputs are written.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, v: Tensor) -> Tensor:
        return F.linear(x, weight, bias) + _with_bias_column(x @ v, u) @ u.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        u: Tensor,
        v: Tensor,
    ) -> tuple[Tensor, int]:
        members, shared = info.batch_size, in_dims[0] is None
        x = x[None] if in_dims[0] is None else x.movedim(in_dims[0], 0)
        rows = x.reshape(len(x), -1, x.shape[-1])
        y = F.linear(rows, weight, bias)
        if shared:
            hidden = (rows[0] @ v.transpose(0, 1).flatten(1)).unflatten(1, (members, -1)).transpose(0, 1)
            y = torch.baddbmm(y, _with_bias_column(hidden, u), u.mT)
        else:
            y = y.baddbmm_(_with_bias_column(rows @ v, u), u.mT)
        return y.view(members, *x.shape[1:-1], -1), 0


def _with_bias_column(hidden: Tensor, u: Tensor) -> Tensor:
    """Append a constant 1 to the hidden values when u has a column for it."""
    if u.shape[-1] == hidden.shape[-1]:
        return hidden
    return torch.cat([hidden, hidden.new_ones(*hidden.shape[:-1], 1)], -1)


@contextmanager
def swapped(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters have other values; afterwards the very same storage is back."""
    kept = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value
        yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value
