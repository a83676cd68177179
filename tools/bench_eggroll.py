"""Images per second of a population evaluated in batches, beside plain inference and the member-by-member loop.

    python tools/bench_eggroll.py specs/quickstart.toml
    python tools/bench_eggroll.py --synthetic full --device cuda --population 16 64 256 --image-size 512 1024

In one process, in turns, medians of several rounds; ratios are medians of the rounds' own, with their quartiles,
"best" is that of the fastest rounds, and "bound" what it would be if only multiplications took time:

    plain       the frozen base model, batches of the same size, no LoRA
    batched     every image of the batch with its own member's LoRA, noise included
    one by one  each member's LoRA set, then its images generated, noise included

With --compile the first two once more with ``backend.compile``; compiling itself is not timed.

each up to the network's output, the decoded images, and the scored images. The clock is process CPU time with one CPU
thread, wall time otherwise. Memory is the peak above what is loaded: on CUDA what torch allocates, on a CPU under
Linux the resident set.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from turns import in_turns, ratio

from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import Batch, assemble
from t2ialign.spec import parse as specs
from t2ialign.tensors.batching import split
from t2ialign_eggroll.eggroll import EvolutionStrategy, Rows
from t2ialign_eggroll.population import Chunk

STAGES = ("network", "images", "scores")
SYNTHETIC = """
[run]
device = "{device}"
[backend]
kind = "sana-sprint"
checkpoint = "{checkpoint}"
dtype = "{dtype}"
image_size = {image_size}
complex_human_instruction = false
[backend.lora]
rank = {rank}
[sampler]
kind = "one-step"
[optimizer]
kind = "eggroll"
sigma_scale = "absolute"
sigma = 0.01
train = ["A", "B"]
[[reward]]
kind = "jpeg-compressibility"
[prompts]
file = "prompts.txt"
"""


class Bench:
    """One workload: a population with some images per member.

    Args:
        optimizer: set up on its problem.
        batch: the images of one member.
    """

    def __init__(self, optimizer: EvolutionStrategy, batch: Batch) -> None:
        self.optimizer, self.problem, self.batch = optimizer, optimizer.problem, batch
        self.noise = self.problem.backend.noise(batch.seeds)
        self.count = optimizer.members.count

    def finish(self, part: Rows, stage: str) -> Any:
        """From initial noise to the end of a stage."""
        backend, sampler = self.problem.backend, self.problem.sampler
        assert sampler is not None
        result = sampler.sample(backend.denoiser(part.conditioning), part.noise, part.seeds)
        if stage != "network":
            result = backend.decode(result)
        if stage == "scores":
            result = self.problem.rewards.score(result, part.conditioning.prompts)
        return result

    def chunks(self) -> Iterator[tuple[slice, Rows]]:
        """Runs of members with their rows, as a step of the optimizer has them."""
        images = len(self.batch.seeds)
        for members in split(self.count, max(1, self.problem.micro_batch // images)):
            for columns in split(images, self.problem.micro_batch):
                yield members, Rows.of(self.batch, self.noise, columns, members.stop - members.start)

    def plain(self, stage: str) -> None:
        with self.problem.adapter.disabled():
            for _, part in self.chunks():
                self.finish(part, stage)

    def batched(self, stage: str) -> None:
        for members, part in self.chunks():
            count = members.stop - members.start
            noise = self.optimizer.member_noise(0, members)
            with self.optimizer.space.population(noise, Chunk(count, len(part.seeds) // count), "auto"):
                self.finish(part, stage)

    def one_by_one(self, stage: str) -> None:
        part = Rows.of(self.batch, self.noise, slice(0, len(self.batch.seeds)), 1)
        for member in range(self.count):
            with self.optimizer.space.member(self.optimizer.member_noise(0, slice(member, member + 1))):
                self.finish(part, stage)


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """Peak memory of a call in MB above the level before it; NaN where it cannot be told."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        run()
        return float("nan")
    reset.write_text("5")
    before = resident_peak()
    run()
    return (resident_peak() - before) / 2**10


def multiplications(run: Callable[[], object], into: dict[str, int], name: str) -> None:
    """Run something and note how many it does."""

    def baddbmm_(y: Any, a: Any, b: Any, **others: Any) -> int:  # shapes; torch counts the form out of place alone
        return 2 * math.prod(a) * int(b[-1])

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: baddbmm_}) as counter:
        run()
    into[name] = counter.get_total_flops()


def resident_peak() -> int:
    """The resident set's high-water mark in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def set_up(path: Path, overrides: list[str]) -> Bench:
    problem = assemble(specs.load(path, overrides))
    optimizer = load_optimizer(problem)
    assert isinstance(optimizer, EvolutionStrategy)
    optimizer.prepare()
    return Bench(optimizer, problem.draw(0))


@torch.no_grad()
def measure(
    path: Path, overrides: list[str], rounds: int, compile_mode: str, stages: list[str], loop: bool
) -> Iterator[dict[str, Any]]:
    """One line per stage for the workload of a spec."""
    bench = set_up(path, overrides)
    problem = bench.problem
    images = bench.count * len(bench.batch.seeds)
    modes = {"plain": bench.plain, "batched": bench.batched}
    if loop:
        modes["one by one"] = bench.one_by_one
    if compile_mode != "none":
        compiled = set_up(path, [*overrides, f"backend.compile='{compile_mode}'"])
        modes |= {"plain, compiled": compiled.plain, "batched, compiled": compiled.batched}
    for stage in stages:
        runs = {name: partial(mode, stage) for name, mode in modes.items()}
        counts: dict[str, int] = {}
        counted = {name: partial(multiplications, run, counts, name) for name, run in runs.items()}
        memory = {name: peak_memory(run, problem.device) for name, run in counted.items()}  # and a warm-up
        turns = in_turns(runs, problem.device, rounds)
        yield {
            "population": bench.count,
            "images_per_member": len(bench.batch.seeds),
            "image_size": problem.backend.info.image_size[0],
            "stage": stage,
            "images_per_second": {name: images / turns.median(name) for name in modes},
            "peak_mb": memory,
            "batched / plain": turns.faster("batched", "plain"),
            "best": turns.best("batched", "plain"),
            "bound": counts["plain"] / counts["batched"],
            "batched / one by one": turns.faster("batched", "one by one") if "one by one" in modes else None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", type=Path, default=Path("specs/quickstart.toml"))
    parser.add_argument("--synthetic", choices=("tiny", "mid", "full"), help="Sana Sprint of random weights instead")
    parser.add_argument("--image-size", type=int, nargs="+", default=[512], help="of the synthetic model")
    parser.add_argument("--dtype", default="float32", help="of the synthetic model")
    parser.add_argument("--rank", type=int, default=2, help="LoRA rank of the synthetic model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--population", type=int, nargs="+", default=[64])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2], help="images per member")
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-loop", action="store_true", help="leave out the loop over members")
    parser.add_argument("--compile", choices=("none", "default", "reduce-overhead"), default="none")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    arguments = parser.parse_args()
    os.environ.setdefault("T2IALIGN_CACHE", tempfile.mkdtemp())
    with tempfile.TemporaryDirectory() as scratch:
        for size in arguments.image_size if arguments.synthetic else [0]:
            path = synthetic_spec(Path(scratch), arguments, size) if arguments.synthetic else arguments.spec
            for population in arguments.population:
                for images in arguments.images:
                    overrides = [
                        f"optimizer.population={population}",
                        f"prompts.per_step={images}",
                        "prompts.images_per_prompt=1",
                        f"run.micro_batch={arguments.micro_batch}",
                        f"run.device='{arguments.device}'",
                    ]
                    lines = measure(
                        path,
                        overrides,
                        arguments.rounds,
                        arguments.compile,
                        arguments.stages,
                        not arguments.no_loop,
                    )
                    report(lines, arguments.json)


def synthetic_spec(folder: Path, arguments: argparse.Namespace, image_size: int) -> Path:
    """A spec file of a model of random weights."""
    import synthetic_sana

    checkpoint = folder / arguments.synthetic
    if not checkpoint.exists():
        synthetic_sana.write(checkpoint, arguments.synthetic, getattr(torch, arguments.dtype))
    (folder / "prompts.txt").write_text("\n".join(synthetic_sana.PROMPTS))
    path = folder / "spec.toml"
    path.write_text(
        SYNTHETIC.format(
            device=arguments.device,
            checkpoint=checkpoint,
            dtype=arguments.dtype,
            image_size=image_size,
            rank=arguments.rank,
        )
    )
    return path


def report(lines: Iterator[dict[str, Any]], as_json: bool) -> None:
    """Print each measurement as it is made."""
    for number, line in enumerate(lines):
        if as_json:
            print(json.dumps(line), flush=True)
            continue
        speed, memory = line["images_per_second"], line["peak_mb"]
        if number == 0:
            size = f"{line['image_size']} px" if line["image_size"] else ""
            print(f"\npopulation {line['population']} x {line['images_per_member']} images {size}; images/s (peak MB)")
            print(
                f"{'':10}"
                + "".join(f"{name:>18}" for name in speed)
                + f"{'/ plain':>20}{'best':>8}{'bound':>8}{'/ one by one':>20}"
            )
        cells = "".join(f"{speed[name]:10.1f} ({memory[name]:5.0f})" for name in speed)
        ratios = f"{ratio(line['batched / plain']):>20}{line['best']:8.2f}{line['bound']:8.2f}"
        ratios += f"{ratio(line['batched / one by one']):>20}"
        print(f"{line['stage']:10}{cells}{ratios}", flush=True)


if __name__ == "__main__":
    main()
