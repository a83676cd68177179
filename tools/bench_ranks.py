"""The evaluation of 400 images by one process and by two: wall time, CPU time, peak memory.

    OMP_NUM_THREADS=1 python tools/bench_ranks.py [--images 400] [--rounds 3] [--calls 1] [--shard]

Both evaluate base and tuned of the same run on the shapes world (Sana Sprint, one EGGROLL step), from a process that
has imported everything; the clock starts once the model is loaded. The order alternates; medians are shown. Two
processes need two free cores. ``--calls`` makes the images heavier: so many network calls each. ``--shard`` also
evaluates with the network's weights split over the two ranks.

What two busy cores can give at most is measured too: two runs at once that share nothing but the machine show how much
they slow each other down.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
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


def measured(run: Path, size: int, overrides: list[str], folder: Path, apart: bool = False) -> list[dict[str, float]]:
    """Each process's seconds, CPU seconds, peak memory (MB) and numbers of the network that it holds.

    Args:
        apart: each is a run of its own, on a copy of the run directory.
    """
    own = [run.with_name(f"{run.name}-{rank}") for rank in range(size)] if apart else [run] * size
    for copy in own if apart else []:
        shutil.copytree(run, copy, dirs_exist_ok=True)

    def work(rank: int) -> None:
        if apart:
            os.environ["WORLD_SIZE"] = "1"
        run_dir, problem, optimizer = runner.restore(own[rank], display=Display(quiet=True), overrides=overrides)
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
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--shard", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        spec = Path(place) / "spec.toml"
        spec.write_text(SPEC.replace("OUT", place))
        run = runner.start(specs.load(spec), Display(quiet=True)).path
        prompts = len(specs.load(spec, ["evaluation.limit=1000000"]).evaluation_prompts())
        each = -(-wanted.images // prompts)
        common = [f"evaluation.limit={-(-wanted.images // each)}", f"evaluation.images_per_prompt={each}"]
        if wanted.calls > 1:
            common.append(f"sampler={{kind = 'scm', steps = {wanted.calls}}}")
        ways = {"one process": (1, [], False), "two processes": (2, [], False), "two runs at once": (2, [], True)}
        if wanted.shard:
            ways["two, sharded"] = (2, ["backend.shard='fsdp'"], False)
        results: dict[str, list[list[dict[str, float]]]] = {name: [] for name in ways}
        for number in range(wanted.rounds):
            for name, (size, more, apart) in sorted(ways.items(), reverse=bool(number % 2)):
                if apart and number:
                    continue  # once is enough for a bound
                results[name].append(measured(run, size, common + more, Path(place) / "logs", apart))
    print(f"{wanted.images} images of base and of tuned; load of the machine now: {os.getloadavg()[0]:.1f}\n")
    print("| | wall s | CPU s of all | CPU s of the busiest | peak MB a rank | numbers held a rank |")
    print("|---|---|---|---|---|---|")
    walls, busiest = {}, {}
    for name, rounds in results.items():
        walls[name] = statistics.median(max(rank["wall"] for rank in found) for found in rounds)
        busiest[name] = statistics.median(max(rank["cpu"] for rank in found) for found in rounds)
        cpu = statistics.median(sum(rank["cpu"] for rank in found) for found in rounds)
        peak = statistics.median(max(rank["peak"] for rank in found) for found in rounds)
        numbers = f"{cpu:.1f} | {busiest[name]:.1f} | {peak:.0f} | {rounds[0][0]['held']:,}"
        print(f"| {name} | {walls[name]:.1f} | {numbers} |")
    one, two, both = ("one process", "two processes", "two runs at once")
    faster = [found[one] / found[two] for found in (walls, busiest)]
    print(f"\ntwo processes are {faster[0]:.2f} times as fast, {faster[1]:.2f} times in CPU time")
    print(f"two runs at once do {2 * walls[one] / walls[both]:.2f} times the work of one: this machine's bound")


if __name__ == "__main__":
    main()
