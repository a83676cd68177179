"""The memory of a torch optimizer (moments, step counts) as named tensors, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

PREFIX = "solver."


def pack(solver: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """CPU copies of everything the solver remembers: "solver.<slot>.<parameter>" -> tensor."""
    return {
        f"{PREFIX}{slot}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for name, parameter in parameters.items()
        for slot, value in solver.state[parameter].items()
    }


def unpack(
    solver: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Give the solver what ``pack`` took from it; other tensors are left alone."""
    for key, value in tensors.items():
        if key.startswith(PREFIX):
            slot, _, name = key.removeprefix(PREFIX).partition(".")
            parameter = parameters[name]
            solver.state[parameter][slot] = value.to(parameter.device if value.ndim else "cpu").clone()
