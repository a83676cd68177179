"""What ``backend.compile`` costs before the first step ends: with an empty cache, and in the next process.

    python tools/bench_compile.py specs/quickstart.toml --set backend.compile=default

Each in a process of its own; seconds of the wall and of all CPUs, compilers included, of the first step with its checks
and of the second, and the graphs compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEYS = ("load", "first step", "second step")


def now() -> tuple[float, float]:
    """Wall and CPU seconds; those of processes that ended count for the latter."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(u.ru_utime + u.ru_stime for u in used)


def measure(path: Path, overrides: list[str]) -> None:
    """Print one JSON object: what -> [wall, CPU], and the number of graphs."""
    import torch

    from t2ialign.problem.optimizer import load_optimizer
    from t2ialign.problem.problem import assemble
    from t2ialign.spec import parse as specs

    # Compile in this process, so that its clock sees the work.
    torch._inductor.config.compile_threads = 1
    times = [now()]
    problem = assemble(specs.load(path, overrides), report=lambda text: None)
    optimizer = load_optimizer(problem)
    _ = problem.backend.trainable
    times.append(now())
    for index in range(2):
        optimizer.step(index)
        times.append(now())
    spent = {
        key: [round(b - a, 1) for a, b in zip(before, after, strict=True)]
        for key, before, after in zip(KEYS, times, times[1:], strict=False)
    }
    print(json.dumps(spent | {"graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, nargs="?", default=Path("specs/quickstart.toml"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        measure(arguments.spec, arguments.overrides)
        return
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty cache", "next process"):
            command = [sys.executable, __file__, str(arguments.spec), "--inside"]
            command += [word for text in arguments.overrides for word in ("--set", text)]
            done = subprocess.run(
                command,
                env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            print(f"{state}: {done.stdout.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
