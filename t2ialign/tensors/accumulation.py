"""One update's gradient, summed over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from t2ialign.tensors.batching import with_oom_retry
from t2ialign.tensors.distributed import World

#: Rows of a batch -> what is minimised and what is logged, by name, each (rows,); "total" has the gradient.
Losses = Callable[[Tensor], dict[str, Tensor]]


def accumulate(
    parameters: Sequence[nn.Parameter],
    rows: Tensor,
    losses: Losses,
    names: Sequence[str],
    micro_batch: int,
    world: World,
    fixed: bool = False,
) -> tuple[dict[str, float], int]:
    """Leave in ``.grad`` the gradient of the mean of ``total`` over ``rows``, whatever the micro-batch and the ranks.

    Args:
        parameters: all on one device; their old gradients are dropped.
        rows: indices (n,) of the update's samples; the ranks share them, and all call this together.
        losses: called with some of the rows, on the parameters' device.
        names: what of the losses is reported; a rank without rows would not know them.
        micro_batch: rows of one forward and backward; halved where they do not fit, unless it is ``fixed``.

    Returns:
        Means of the named losses over ``rows``, the same on every rank, and the micro-batch that fits.
    """
    device = parameters[0].device
    # Equally many on every rank, for sharded networks: the last ones may be another rank's, and count for nothing.
    places = torch.arange(world.rank, -(-len(rows) // world.size) * world.size, world.size)
    mine, real = rows[places % len(rows)], int((places < len(rows)).sum())

    def run(size: int) -> Tensor:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        sums = torch.zeros(len(names), device=device)
        for start, part in zip(range(0, len(mine), size), mine.split(size), strict=True):
            found, counted = losses(part.to(device)), max(0, real - start)
            (found["total"][:counted].sum() / len(rows)).backward()
            sums += torch.stack([found[name][:counted].detach().float().sum() for name in names])
        return sums

    sums, micro_batch = with_oom_retry(run, micro_batch, fixed)
    sum_over_ranks(parameters, world)
    means = world.gather(sums[None]).sum(0) / len(rows)
    return dict(zip(names, means.tolist(), strict=True)), micro_batch


def sum_over_ranks(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Add up every rank's gradients."""
    if world.size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = world.gather(torch.cat([gradient.flatten() for gradient in gradients])[None]).sum(0)
    for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
