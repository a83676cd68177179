"""Time of a ReNO iteration beside the floor: one forward and backward of generator, decoder and rewards, nothing else.

    python tools/bench_reno.py specs/reno-shapes.toml
    python tools/bench_reno.py specs/reno-sd-turbo.toml --batches 1 8 --rounds 5

One process; iterations and floors alternate on the same images, and the best of several rounds counts. The clock is
process CPU time with one CPU thread, wall time on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import Problem, assemble
from t2ialign.spec import parse as specs


def floor(problem: Problem, noise: Tensor, seeds: list[int]) -> None:
    """Images, their rewards, and the gradient of the sum."""
    conditioning = problem.conditioning[: len(seeds)]
    noise = noise.detach().requires_grad_()
    images = problem.render(conditioning, seeds, noise)
    scores = problem.rewards.score(images, conditioning.prompts, optimised_only=True)
    problem.rewards.combine(scores).sum().backward()


def measure(path: Path, overrides: list[str], batch: int, rounds: int) -> dict[str, float]:
    """Best seconds of an iteration and of the floor for ``batch`` searches at once."""
    fixed = [f"prompts.per_step={batch}", "prompts.images_per_prompt=1", f"run.micro_batch={batch}"]
    problem = assemble(specs.load(path, [*overrides, f"run.steps={rounds + 2}", *fixed]))
    optimizer = load_optimizer(problem)
    seeds = [search.seed for search in optimizer.searches[:batch]]
    noise = problem.backend.noise(seeds)
    best = {"iteration": float("inf"), "floor": float("inf")}
    for index in range(rounds + 1):  # the first of each loads and warms up
        start = clock(problem.device)
        optimizer.step(index)
        middle = clock(problem.device)
        floor(problem, noise, seeds)
        if index:
            best["iteration"] = min(best["iteration"], middle - start)
            best["floor"] = min(best["floor"], clock(problem.device) - middle)
    return {
        "seconds_per_iteration": best["iteration"],
        "seconds_of_floor": best["floor"],
        "ratio": best["iteration"] / best["floor"],
        "images_per_second": batch / best["iteration"],
    }


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def main() -> None:
    """Print one JSON object per batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for batch in arguments.batches:
        found = measure(arguments.spec, arguments.overrides, batch, arguments.rounds)
        print(json.dumps({"batch": batch, **{name: round(value, 4) for name, value in found.items()}}))


if __name__ == "__main__":
    main()
