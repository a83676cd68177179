"""Operations that a device would start for one batch of a population, beside the plain network: load-independent.

    python tools/count_operations.py

A Sana Sprint of 20 layers and tiny widths with random weights, the default LoRA targets, one step, one micro-batch of
four members in bfloat16. Views and allocations are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import bench_eggroll
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from t2ialign_eggroll.population import Chunk

#: They move no numbers.
FREE = {"view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze", "split", "empty"}
FREE |= {
    "as_strided",
    "alias",
    "split_with_sizes",
    "permute",
    "detach",
    "unbind",
    "lift_fresh",
    "empty_strided",
    "chunk",
}
FREE |= {"_reshape_alias", "empty_like", "reshape", "new_empty", "new_zeros"}


class Counted(TorchDispatchMode):
    """How many operations ran inside."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket._qualified_op_name.removeprefix("aten::") not in FREE
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        arguments = argparse.Namespace(synthetic="deep", device="cpu", dtype="bfloat16", rank=2)
        path = bench_eggroll.synthetic_spec(Path(scratch), arguments, 16)
        overrides = ["optimizer.population=4", "prompts.per_step=1", "run.micro_batch=4"]
        bench = bench_eggroll.set_up(path, overrides)
        ((members, part),) = bench.chunks()
        bench.optimizer.member_noise(0, members)  # fills its tables
        with bench.problem.adapter.disabled(), Counted() as plain:
            bench.finish(part, "network")
        with Counted() as lora:
            bench.finish(part, "network")
        with Counted() as drawing:
            noise = bench.optimizer.member_noise(1, members)
        with bench.optimizer.space.population(noise, Chunk(4, 1), "auto"), Counted() as population:
            bench.finish(part, "network")
    layers = len(bench.problem.adapter.layers)
    print(f"{layers} adapted layers")
    print(f"plain network {plain.count}, with the LoRA {lora.count}")
    extra = (population.count - plain.count) / layers
    print(f"population {population.count} ({extra:.2f} more for each layer), drawing its noise {drawing.count}")


if __name__ == "__main__":
    main()
