"""Does a run of two ranks survive whatever ends one of them? Signal x rank x moment, 60 trials.

    python tools/stops.py                                             all trials, a table
    python tools/stops.py --torchrun --kind SIGTERM --moment step     some, by the launcher of users

Every trial starts the same little run of the toy world, lets one rank meet with an accident at one moment, waits for
both to end, resumes, and compares what the run delivers with an undisturbed run, byte for byte. Exit code 1 when a
trial hangs, tells nothing of the rank, or does not resume to the same bytes.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

KINDS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGKILL", "exception")
#: Where a rank is when something happens to it -> the function that is entered then.
MOMENTS = {
    "loading": "t2ialign.run.runner:load_optimizer",
    "step": "t2ialign.testing.toy:RandomSearch.step",
    "checkpoint": "t2ialign.run.runner:_Loop._checkpoint",
    "grid": "t2ialign.run.runner:_Loop._grid",
    "evaluation": "t2ialign.evaluation.evaluate:_encoded",
    "export": "t2ialign.run.finish:check_export",
}
DELIVERED = ("metrics.jsonl", "export/pytorch_lora_weights.safetensors", "evaluation/summary.json")
LIMIT = 120.0
Launch = Callable[..., tuple[int | None, float, str]]


def worker(words: list[str]) -> None:
    """One rank: the command line in the toy world, with the accident that the environment names."""
    from t2ialign import cli
    from t2ialign.testing import installed

    if accident := os.environ.get("ACCIDENT"):
        kind, rank, moment = accident.split()
        if rank == os.environ["RANK"]:
            _prepare(kind, moment)
    sys.argv = ["t2ialign", *words]
    with installed():
        cli.main()


def _prepare(kind: str, moment: str) -> None:
    place, _, name = MOMENTS[moment].replace(":", ".").rpartition(".")
    owner, left = pkgutil.resolve_name(place), [2 if moment == "step" else 1]
    real = getattr(owner, name)

    def struck(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if kind == "exception":
                raise RuntimeError("a planned accident")
            os.kill(os.getpid(), getattr(signal, kind))
        return real(*arguments, **options)

    setattr(owner, name, struck)


def forked(words: list[str], accident: str = "") -> tuple[int | None, float, str]:
    """Exit code (None: it hung and was killed), seconds, and what was written."""
    from t2ialign.testing.ranks import ranks

    def work(rank: int) -> None:
        os.environ["ACCIDENT"] = accident
        worker(words)

    with tempfile.TemporaryDirectory() as place:
        try:
            ended = ranks(2, work, Path(place), LIMIT)
        except TimeoutError as error:
            return None, LIMIT, str(error)
    return int(any(ended.codes)), ended.seconds, ended.text


def torchrun(words: list[str], accident: str = "") -> tuple[int | None, float, str]:
    """As ``forked``, by the launcher of users."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, __file__, "--worker", *words],
        env=os.environ | {"ACCIDENT": accident, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        text, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        return None, LIMIT, process.communicate()[0]
    return process.returncode, time.monotonic() - started, text


def delivered(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in DELIVERED]


def spec_in(folder: Path) -> Path:
    """Four steps; five prompts of three images, which two ranks cannot share evenly."""
    from t2ialign.testing import write_spec

    folder.mkdir()
    return write_spec(folder, evaluation={"every": 2, "images_per_prompt": 3}, samples={"every": 2, "count": 5})


def trial(launch: Launch, kind: str, rank: int, moment: str, whole: list[bytes], folder: Path) -> dict[str, Any]:
    run = folder / "runs/spec"
    code, seconds, text = launch(["run", str(spec_in(folder))], f"{kind} {rank} {moment}")
    checkpoints = sorted(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*"))
    again, more, resumed = launch(["resume", str(run)])
    same = again == 0 and delivered(run) == whole
    if not same:
        print(resumed[-2000:])
    return {
        "ended": "hung" if code is None else f"{seconds:.1f} s",
        "checkpoint": str(checkpoints[-1]) if checkpoints else "-",
        "names the rank": f"rank {rank}" in text.partition("ChildFailedError")[0],
        "resume told once": text.count("t2ialign resume") == 1,
        "resumed": f"{more:.1f} s",
        "same bytes": same,
        "good": code is not None and same and f"rank {rank}" in text,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--moment", choices=MOMENTS, action="append")
    parser.add_argument("--torchrun", action="store_true", help="by torchrun: a minute a trial")
    wanted = parser.parse_args()
    launch = torchrun if wanted.torchrun else forked
    cells = list(product(wanted.kind or KINDS, (0, 1), wanted.moment or MOMENTS))
    with tempfile.TemporaryDirectory() as place:
        code, _, text = launch(["run", str(spec_in(Path(place) / "whole"))])
        if code:
            sys.exit(text)
        whole, bad, header = delivered(Path(place) / "whole/runs/spec"), 0, False
        for number, (kind, rank, moment) in enumerate(cells):
            found = trial(launch, kind, rank, moment, whole, Path(place) / str(number))
            bad += not found.pop("good")
            if not header:
                print("| " + " | ".join(["signal", "rank", "moment", *found]) + " |")
                print("|" + "---|" * (3 + len(found)), flush=True)
                header = True
            shown = ["yes" if v is True else "NO" if v is False else v for v in found.values()]
            print("| " + " | ".join([kind, str(rank), moment, *shown]) + " |", flush=True)
    print(f"\n{len(cells)} trials, {bad} bad")
    sys.exit(bool(bad))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2:])
    else:
        main()
