"""Rollout images per second of ppo-epd: all probes of an interval in one network call, and one call per probe.

    python tools/bench_ppo.py specs/ppo-epd-shapes.toml
    python tools/bench_ppo.py specs/ppo-epd-sd15.toml --rounds 1 --images 8

One process, one problem, the same tables, prompts and noise, alternating; best of several rounds. A table per image.
``network_speedup`` is what the network alone allows: K + 1 calls of B rows against one of B and one of K B rows.
The clock is process CPU time with one CPU thread, wall time otherwise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from turns import clock

from t2ialign.evaluation.counting import counting
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import Problem, assemble
from t2ialign.spec import parse as specs
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_ppo.optimizer import PpoEpd
from t2ialign_ppo.rollouts import rollout, sampler_of
from t2ialign_solvers.epd import Epd

FORMS = {"batched": None, "sequential": 1}


def measure(path: Path, overrides: list[str], images: list[int], rounds: int) -> list[dict[str, Any]]:
    """Images per second of both forms, for several batch sizes."""
    problem = assemble(specs.load(path, overrides))
    optimizer = load_optimizer(problem)
    assert isinstance(optimizer, PpoEpd)
    given = sampler_of(problem)
    samplers = {
        name: Epd(given.config.model_copy(update={"probes_per_call": chunk}), problem.device)
        for name, chunk in FORMS.items()
    }
    batch = problem.draw(0)
    return [_measure(optimizer, samplers, batch, count, rounds) for count in images]


def _measure(optimizer: PpoEpd, samplers: dict[str, Epd], batch: Any, count: int, rounds: int) -> dict[str, Any]:
    problem = optimizer.problem
    problem.micro_batch = count
    rows = [row % len(batch.seeds) for row in range(count)]
    conditioning, seeds = batch.conditioning[rows], [batch.seeds[row] for row in rows]
    with torch.no_grad():
        tables = optimizer.policy().draw(range(count)).table(optimizer.start_table)
    best = dict.fromkeys(samplers, float("inf"))
    calls, drawn = {}, {}
    for _ in range(rounds):
        for name, sampler in samplers.items():
            problem.sampler = sampler
            start = clock(problem.device)
            with counting() as counted:
                drawn[name] = rollout(problem, tables, conditioning, seeds)
            best[name] = min(best[name], clock(problem.device) - start)
            calls[name] = counted.calls
    return {
        "images": count,
        "images_per_second": {name: round(count / seconds, 2) for name, seconds in best.items()},
        "speedup": round(best["sequential"] / best["batched"], 2),
        "network_speedup": round(_network_speedup(problem, conditioning, tables.points, rounds), 2),
        "network_calls": calls,
        "largest_difference": (drawn["batched"] - drawn["sequential"]).abs().max().item(),
    }


@torch.no_grad()
def _network_speedup(problem: Problem, conditioning: Conditioning, points: int, rounds: int) -> float:
    """The speedup of an interval if nothing but the network took time."""
    backend, count = problem.backend, len(conditioning)
    rows = {1: list(range(count)), points: [row for row in range(count) for _ in range(points)]}
    denoisers = {repeats: backend.denoiser(conditioning[index]) for repeats, index in rows.items()}
    middle = denoisers[1].path.t_start / 2
    best = dict.fromkeys(rows, float("inf"))
    for _ in range(1 + 3 * rounds):
        for repeats, denoiser in denoisers.items():
            latents = backend.noise(rows[repeats])
            start = clock(problem.device)
            denoiser(latents, middle)
            best[repeats] = min(best[repeats], clock(problem.device) - start)
    return (1 + points) * best[1] / (best[1] + best[points])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 32], help="images per rollout")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for line in measure(options.spec, options.overrides, options.images, options.rounds):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
