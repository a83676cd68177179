"""What an RL step costs beside the floor: plain inference for its images, bare forward and backward for its learning.

    OMP_NUM_THREADS=1 python tools/bench_rl.py specs/nft-shapes.toml
    python tools/bench_rl.py specs/flow-grpo-sd3.toml --rounds 3

One process; all alternate, best of several rounds. "generation" is the speed of the method's drawing over that of a
plain loop of ``Backend.generate`` over the same images. "learning" is the time of the step's learning over that of the
same number of forwards and backwards of the network, with the other policies' forwards that the method asks for. The
clock is process CPU time with one CPU thread, wall time otherwise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from turns import clock

from t2ialign.evaluation.counting import counting
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import Problem, assemble
from t2ialign.spec import parse as specs
from t2ialign.tensors.batching import split
from t2ialign_rl import loop


def plain(problem: Problem, index: int) -> None:
    """The step's images by inference alone."""
    batch = problem.draw(index)
    with torch.no_grad():
        for rows in split(len(batch.seeds), problem.micro_batch):
            problem.render(batch.conditioning[rows], batch.seeds[rows])


def bare(problem: Problem, index: int, trained: int, other: int) -> None:
    """So many rows forwards and backwards, and others forwards, in the run's micro-batches."""
    batch = problem.draw(index)
    x = problem.backend.noise(batch.seeds)
    count = len(batch.seeds)

    def chunk(size: int) -> tuple[Any, torch.Tensor]:
        rows = torch.arange(size) % count
        return problem.backend.denoiser(batch.conditioning[rows]), x[rows.to(x.device)]

    for rows in split(other, problem.micro_batch):
        denoiser, own = chunk(rows.stop - rows.start)
        with torch.no_grad():
            denoiser(own, denoiser.path.t_start / 2)
    for rows in split(trained, problem.micro_batch):
        denoiser, own = chunk(rows.stop - rows.start)
        denoiser(own, denoiser.path.t_start / 2).x0.square().mean().backward()


def measure(path: Path, overrides: list[str], rounds: int) -> dict[str, Any]:
    """Best seconds of drawing, plain drawing, learning and bare learning."""
    problem = assemble(specs.load(path, overrides), report=lambda text: None)
    optimizer = load_optimizer(problem)
    if not hasattr(optimizer, "rollout") or problem.spec.optimizer.kind in ("draft", "srpo", "grpo-ar"):
        raise SystemExit("for methods that draw first and learn from the drawn images: nft, awm, online-dpo, flow-grpo")
    seconds = {"draw": float("inf"), "learn": float("inf"), "plain": float("inf"), "bare": float("inf")}
    update, spent = loop.Online.update, dict[str, float]()
    rows = {"trained": 0, "forwards": 0}

    def timed(self: Any, index: int, finite: torch.Tensor, times: int, losses: Any) -> dict[str, float]:
        def counted(part: torch.Tensor) -> dict[str, torch.Tensor]:
            with counting() as count:
                found = losses(part)
            rows["trained"] += len(part)
            rows["forwards"] += count.rows
            return found

        rows.update(trained=0, forwards=0)
        start = clock(problem.device)
        found = update(self, index, finite, times, counted)
        spent["learn"] = clock(problem.device) - start
        return found

    drawing = problem.rollout

    def drawn(*arguments: Any, **options: Any) -> Any:
        start = clock(problem.device)
        found = drawing(*arguments, **options)
        spent["draw"] = clock(problem.device) - start
        return found

    for index in range(rounds + 1):  # the first loads and warms up
        with mock.patch.object(loop.Online, "update", timed), mock.patch.object(problem, "rollout", drawn):
            optimizer.step(index)
        start = clock(problem.device)
        plain(problem, index)
        middle = clock(problem.device)
        pairs = 2 if problem.spec.optimizer.kind == "online-dpo" else 1
        trained = rows["trained"] * pairs
        bare(problem, index, trained, rows["forwards"] - trained)
        spent |= {"plain": middle - start, "bare": clock(problem.device) - middle}
        if index:
            seconds = {name: min(best, spent[name]) for name, best in seconds.items()}
    return {
        "kind": problem.spec.optimizer.kind,
        **{f"seconds_{name}": round(value, 3) for name, value in seconds.items()},
        "generation": round(seconds["plain"] / seconds["draw"], 3),
        "learning": round(seconds["learn"] / seconds["bare"], 3),
        **rows,
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.spec, arguments.overrides, arguments.rounds)))


if __name__ == "__main__":
    main()
