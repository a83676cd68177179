"""ClipUp (Toklu, Liskowski and Srivastava, arXiv 2008.02387): steps of bounded length for noisy gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from t2ialign_eggroll.update import norm


class ClipUp(torch.optim.Optimizer):
    """v <- m v - a g / |g|, shortened to ``max_speed``; theta <- theta + v, with norms over all parameters together.

    Only the direction of the gradient matters, and the length of a step is ``max_speed`` in practice. A gradient of
    zero adds nothing, where 0 / 0 would stay in the velocity for ever.

    Args:
        params: one group; they move together.
        lr: step size a. A learning-rate scheduler that changes it scales ``max_speed`` too.
        momentum: m in [0, 1).
        max_speed: longest step (L2); default 2 ``lr``.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.075,
        momentum: float = 0.9,
        max_speed: float | None = None,
    ) -> None:
        if not lr > 0 or not 0 <= momentum < 1 or (max_speed is not None and not max_speed > 0):
            raise ValueError(
                f"ClipUp needs lr > 0, momentum in [0, 1) and max_speed > 0, not {lr}, {momentum} and {max_speed}"
            )
        ratio = 2.0 if max_speed is None else max_speed / lr
        super().__init__(params, {"lr": lr, "momentum": momentum, "speed_ratio": ratio})
        if len(self.param_groups) > 1:
            raise ValueError("ClipUp moves all parameters together: give them as one group")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step along the gradients; ``closure``, if any, is called first and its result returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        moved = [p for p in group["params"] if p.grad is not None]
        if not moved:
            return loss
        length = norm(p.grad for p in moved)
        scale = torch.where(length > 0, group["lr"] / length, 0.0)
        for p in moved:
            velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
            velocity.mul_(group["momentum"]).sub_(p.grad * scale.to(p))
        velocities: list[Tensor] = [self.state[p]["velocity"] for p in moved]
        speed, limit = norm(velocities), group["speed_ratio"] * group["lr"]
        shorter = torch.where(speed > limit, limit / speed, 1.0)
        for p, velocity in zip(moved, velocities, strict=True):
            p.add_(velocity.mul_(shorter.to(p)))
        return loss
