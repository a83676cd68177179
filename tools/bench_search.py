"""Images per second of searches: many prompts together, and one prompt at a time as the published codes go.

    python tools/bench_search.py                                   specs of the shapes world
    python tools/bench_search.py specs/fk-shapes.toml --prompts 8 --set optimizer.particles=4
    python tools/bench_search.py specs/fk-shapes.toml --alone network

Both forms search the same images in one process, alternating, and the best of several rounds counts. "search" takes one
prompt at a time with its particles or members together; "network" also asks the network for one latent at a time. The
clock is process CPU time with one CPU thread, wall time on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import Problem, assemble
from t2ialign.spec import parse as specs

SPECS = Path(__file__).parents[1] / "specs"
SHIPPED = [SPECS / f"{name}-shapes.toml" for name in ("fk", "evo", "zero-order")]


def measure(path: Path, overrides: list[str], prompts: int, rounds: int, alone: str) -> dict[str, float]:
    """Best seconds of ``prompts`` images searched together, and one after the other."""
    fixed = [f"prompts.per_step={prompts}", "prompts.images_per_prompt=1"]
    problem = assemble(specs.load(path, [*overrides, *fixed]))
    optimizer, together = load_optimizer(problem), problem.micro_batch
    rows, seeds = problem.conditioning[list(range(prompts))], list(range(prompts))
    best = {"together": float("inf"), "alone": float("inf")}
    for index in range(rounds + 1):  # the first loads and warms up
        problem.micro_batch = together
        start = clock(problem)
        optimizer.generate(rows, seeds)
        middle = clock(problem)
        problem.micro_batch = 1 if alone == "network" else together
        for row in seeds:
            optimizer.generate(rows[[row]], [row])
        end = clock(problem)
        if index or rounds == 0:
            best["together"] = min(best["together"], middle - start)
            best["alone"] = min(best["alone"], end - middle)
    return {
        "images_per_second": prompts / best["together"],
        "images_per_second_alone": prompts / best["alone"],
        "ratio": best["alone"] / best["together"],
    }


def clock(problem: Problem) -> float:
    if problem.device.type == "cuda":
        torch.cuda.synchronize(problem.device)
    return time.process_time() if problem.device.type == "cpu" else time.perf_counter()


def main() -> None:
    """Print one JSON object per spec."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", type=Path, nargs="*", default=SHIPPED)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--alone", choices=["search", "network"], default="search")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for path in arguments.specs:
        found = measure(path, arguments.overrides, arguments.prompts, arguments.rounds, arguments.alone)
        print(json.dumps({"spec": path.name, **{name: round(value, 4) for name, value in found.items()}}), flush=True)


if __name__ == "__main__":
    main()
