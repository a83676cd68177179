"""The evaluation of 400 images by one process and by two: wall time, CPU time, peak memory.

    OMP_NUM_THREADS=1 python tools/bench_ranks.py [--images 400] [--rounds 3] [--shard]

Both evaluate base and tuned of the same run on the shapes world (Sana Sprint, one EGGROLL step), from a process that
has imported everything; the clock starts once the model is loaded. The order alternates; medians are shown. Two
processes need two free cores. ``--shard`` also evaluates with the network's weights split over the two ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

from t2ialign.ranks.sharding import held
from t2ialign.run import finish, runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing.ranks import ranks

SPEC = """
[run]
steps = 1
out = "OUT"
[backend]
kind = "sana-sprint"
checkpoint = "pkg:t2ialign_shapes/checkpoints/sprint-washed"
dtype = "float32"
complex_human_instruction = false
[sampler]
kind = "one-step"
[optimizer]
kind = "eggroll"
population = 4
[[reward]]
kind = "shapes-graded"
[prompts]
file = "pkg:t2ialign_shapes/prompts/train.txt"
per_step = 2
[evaluation]
every = 0
limit = 4
"""


def measured(run: Path, size: int, overrides: list[str], folder: Path) -> list[dict[str, float]]:
    """Each rank's seconds, CPU seconds, peak memory (MB) and numbers of the network that it holds."""

    def work(rank: int) -> None:
        run_dir, problem, optimizer = runner.restore(run, display=Display(quiet=True), overrides=overrides)
        problem.world.meet()
        wall, cpu = time.perf_counter(), time.process_time()
        finish.evaluate_run(run_dir, problem, optimizer, Display(quiet=True))
        problem.world.meet()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak": peak}
        (folder / f"{rank}.json").write_text(json.dumps(found | {"held": held(problem.backend.trainable)}))

    ended = ranks(size, work, folder, limit=3600)
    if any(ended.codes):
        raise SystemExit(ended.text)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        spec = Path(place) / "spec.toml"
        spec.write_text(SPEC.replace("OUT", place))
        run = runner.start(specs.load(spec), Display(quiet=True)).path
        prompts = len(specs.load(spec, ["evaluation.limit=1000000"]).evaluation_prompts())
        each = -(-wanted.images // prompts)
        common = [f"evaluation.limit={-(-wanted.images // each)}", f"evaluation.images_per_prompt={each}"]
        ways = {"one process": (1, []), "two processes": (2, [])}
        if wanted.shard:
            ways["two, sharded"] = (2, ["backend.shard='fsdp'"])
        results: dict[str, list[list[dict[str, float]]]] = {name: [] for name in ways}
        for number in range(wanted.rounds):
            for name, (size, more) in sorted(ways.items(), reverse=bool(number % 2)):
                results[name].append(measured(run, size, common + more, Path(place) / "logs"))
    print(f"{wanted.images} images of base and of tuned; load of the machine now: {os.getloadavg()[0]:.1f}\n")
    print("| | wall s | CPU s of all | peak MB a rank | numbers held a rank |\n|---|---|---|---|---|")
    walls = {}
    for name, rounds in results.items():
        walls[name] = statistics.median(max(rank["wall"] for rank in found) for found in rounds)
        cpu = statistics.median(sum(rank["cpu"] for rank in found) for found in rounds)
        peak = statistics.median(max(rank["peak"] for rank in found) for found in rounds)
        print(f"| {name} | {walls[name]:.1f} | {cpu:.1f} | {peak:.0f} | {rounds[0][0]['held']:,} |")
    print(f"\ntwo processes are {walls['one process'] / walls['two processes']:.2f} times as fast")


if __name__ == "__main__":
    main()
