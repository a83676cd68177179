"""Memory per rank of a network that is split over two ranks, against the whole one on each.

    OMP_NUM_THREADS=1 python tools/bench_sharding.py [--size mid]

A Sana Sprint with random weights (``synthetic_sana.py``) draws two images on each of two gloo ranks. What counts is the
memory of a rank's process above what it had before it loaded anything: once loaded, and at most while drawing. (Linux)
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel  # noqa: F401  # what a rank imports is not counted
from synthetic_sana import PROMPTS, SIZES, write
from transformers import Gemma2Model  # noqa: F401

from t2ialign.problem.problem import assemble
from t2ialign.ranks.sharding import held
from t2ialign.spec import parse as specs
from t2ialign.tensors import distributed
from t2ialign.testing.ranks import ranks

SPEC = """
[run]
device = "cpu"
out = "OUT"
micro_batch = 2
[backend]
kind = "sana-sprint"
checkpoint = "OUT/checkpoint"
dtype = "float32"
complex_human_instruction = false
shard = "SHARD"
[backend.lora]
rank = 4
[sampler]
kind = "one-step"
[optimizer]
kind = "eggroll"
population = 2
[[reward]]
kind = "jpeg-compressibility"
[prompts]
file = "prompts.txt"
per_step = 2
"""


def resident(field: str) -> float:
    """MB of this process: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measured(spec: Path, folder: Path) -> list[dict[str, float]]:
    """What each of two ranks holds."""

    def work(rank: int) -> None:
        before = resident("VmRSS")
        world = distributed.join()
        problem = assemble(specs.load(spec), world, lambda text: None)
        gc.collect()
        found = {"weights": held(problem.backend.trainable) * 4 / 2**20, "loaded": resident("VmRSS") - before}
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
        batch = problem.draw(0)
        problem.generate(batch.conditioning, batch.seeds)
        found["drawing"] = resident("VmHWM") - before
        (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")

    ended = ranks(2, work, folder, limit=1800)
    if any(ended.codes):
        raise SystemExit(ended.text)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mid")
    wanted = parser.parse_args()
    print(
        "| MB a rank, of the larger | frozen weights and LoRA | process, once loaded | process, at most while drawing |"
    )
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        # Elsewhere: the ranks would inherit the memory that it took, and use it again uncounted.
        writer = multiprocessing.get_context("fork").Process(
            target=write, args=(Path(place) / "checkpoint", wanted.size, torch.float32)
        )
        writer.start()
        writer.join()
        (Path(place) / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
        for name, way in (("whole", "none"), ("sharded", "fsdp")):
            spec = Path(place) / f"{way}.toml"
            spec.write_text(SPEC.replace("OUT", place).replace("SHARD", way), encoding="utf-8")
            found = measured(spec, Path(place) / "logs")
            numbers = " | ".join(f"{max(rank[key] for rank in found):.0f}" for key in ("weights", "loaded", "drawing"))
            print(f"| {name} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
