"""Peak memory of commands whose inputs are many or large: prints one line a case.

python tools/bench_memory.py --photographs 32
python tools/bench_memory.py --bench 200 2000
python tools/bench_memory.py --sample 20 1000
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SPEC = Path(__file__).parents[1] / "specs" / "quickstart.toml"
#: Images of a micro-batch of `sample`: all counts draw batches of this size.
BATCH = 4


def peak(arguments: list[str]) -> float:
    """MB that a command of ours takes at most."""
    child = os.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "t2ialign", *arguments])
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"t2ialign {' '.join(arguments)} ends with {os.waitstatus_to_exitcode(status)}")
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _bench(images: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        prompts = Path(name) / "prompts.txt"
        prompts.write_text("a red circle\n")
        return peak(["bench", str(prompts), str(SPEC), "--images", str(images), "--no-more", "--out", f"{name}/bench"])


def _sample(images: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        size = ["--set", "backend.image_size=128", "--set", 'run.device="cpu"', "--set", f"run.micro_batch={BATCH}"]
        return peak(["sample", str(SPEC), *size, "-p", "a red circle", "-n", str(images), "--out", f"{name}/out"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photographs", type=int, default=32, help="of 24 megapixels")
    parser.add_argument("--reward", default="jpeg-compressibility")
    parser.add_argument("--bench", type=int, nargs="+", default=[], help="images of a bench of the quickstart's base")
    parser.add_argument("--sample", type=int, nargs="+", default=[], help="images of 128 px of the quickstart's base")
    options = parser.parse_args()
    for images in options.sample:
        print(f"sample, {images} images: {_sample(images):,.0f} MB", flush=True)
    for images in options.bench:
        print(f"bench, {images} images: {_bench(images):,.0f} MB", flush=True)
    if options.bench or options.sample:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = np.random.default_rng(0).integers(0, 255, (250, 375, 3), dtype=np.uint8)
        first = folder / "0.jpg"
        Image.fromarray(noise).resize((6000, 4000), Image.Resampling.BICUBIC).save(first, quality=90)
        for number in range(1, options.photographs):
            shutil.copyfile(first, folder / f"{number}.jpg")
        found = peak(["score", str(folder), "--prompt", "a photograph", "--reward", options.reward, "--device", "cpu"])
        print(f"score, {options.photographs} photographs of 24 megapixels: {found:,.0f} MB")


if __name__ == "__main__":
    main()
