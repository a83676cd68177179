"""What happens to runs when something breaks: prints the matrix fault / tried / survived / lost steps.

    python tools/faults.py                       # within ten minutes
    python tools/faults.py --minutes 2 --only kill "reward server"

Every trial is a run of four steps on the toy world in a process of its own, which a fault ends, and a second process
that resumes it; another plugin or a tracker that fails must not even end it. A trial survives if the resumed run ends,
and all its metrics and delivered files are, to the last bit, those of a run that nothing disturbed. Lost steps are
those whose numbers are missing or others. POSIX only (it forks).
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from broken_parts import RewardServer, Tables, broken_optimizer, broken_plugin, broken_reward, broken_tracker
from rich.console import Console

from t2ialign import plugins
from t2ialign.errors import T2IAlignError
from t2ialign.problem.problem import Problem
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.storage.run_directory import RunDir
from t2ialign.testing.optimizers import OptimizerContract
from t2ialign.testing.world import installed

#: Audit events that change files.
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Fault = Callable[[random.Random, Path, int, float], None]
#: Optimizers whose models the toy world does not have.
ELSEWHERE = {"grpo-ar"}
#: The one whose reward comes from a server.
SERVED = "eggroll"


def operations(folder: Path, act: Callable[[int], None]) -> None:
    """Call ``act(n)`` before this process's n-th change of files below a folder."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (writes or event in CHANGES) and str(folder) in str(arguments[0]):
            count += 1
            act(count)

    sys.addaudithook(hook)


def kill_at_operation(chooser: random.Random, runs: Path, changes: int, seconds: float) -> None:
    chosen = chooser.randint(1, changes)
    operations(runs, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == chosen else None)


def refuse_operation(code: int) -> Fault:
    def fault(chooser: random.Random, runs: Path, changes: int, seconds: float) -> None:
        chosen = chooser.randint(1, changes)

        def refuse(number: int) -> None:
            if number >= chosen:
                raise OSError(code, os.strerror(code))

        operations(runs, refuse)

    return fault


def small_files(chooser: random.Random, runs: Path, changes: int, seconds: float) -> None:
    limit = chooser.randint(50, 20_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def no_memory(chooser: random.Random, runs: Path, changes: int, seconds: float) -> None:
    render, most = Problem.render, chooser.choice([1, 2, 3])

    def small(self: Problem, conditioning: object, seeds: list[int], *more: object) -> object:
        if len(seeds) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return render(self, conditioning, seeds, *more)  # type: ignore[arg-type]

    Problem.render = small  # type: ignore[method-assign, assignment]


def nothing(chooser: random.Random, runs: Path, changes: int, seconds: float) -> None:
    """The fault comes from outside the process."""


def damage(chooser: random.Random, run: Path) -> None:
    """Cut, flip or take away a file of the newest checkpoint, of a run that was stopped."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    file = newest / chooser.choice(["state.json", "state.safetensors"])
    content = bytearray(file.read_bytes())
    match chooser.randrange(3):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(content[: chooser.randrange(len(content))])
        case _:
            content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
            file.write_bytes(content)


FAULTS: dict[str, Fault] = {
    "kill -9 at the n-th change of a file": kill_at_operation,
    "kill -9 at a random time": nothing,
    "SIGTERM at a random time": nothing,
    "SIGINT at a random time": nothing,
    "disk full from the n-th change of a file on": refuse_operation(errno.ENOSPC),
    "read-only from the n-th change of a file on": refuse_operation(errno.EROFS),
    "no file may grow (RLIMIT_FSIZE)": small_files,
    "newest checkpoint damaged": nothing,
    "out of memory on the CPU": no_memory,
}
NO_MEMORY, ROUNDING = "out of memory on the CPU", 1e-3  # a halved micro-batch adds up in another order
#: Faults that another process causes, at a random time.
SENT = {
    "kill -9 at a random time": signal.SIGKILL,
    "SIGTERM at a random time": signal.SIGTERM,
    "SIGINT at a random time": signal.SIGINT,
}
DAMAGED = "newest checkpoint damaged"
BROKEN_PLUGIN, BROKEN_TRACKER = "another plugin is broken", "tracker fails"
#: What fails in the run itself: set up with its tables and a folder, before it begins.
PARTS: dict[str, Callable[[random.Random, Tables, Path], None]] = {
    "reward breaks its contract": broken_reward,
    "optimizer breaks its contract": broken_optimizer,
    BROKEN_PLUGIN: broken_plugin,
    BROKEN_TRACKER: broken_tracker,
}
SERVERS = {"reward server killed for good": False, "reward server killed and started again": True}
NAMES = [*FAULTS, *PARTS, *SERVERS]
#: How often a fault is tried against the first ones, of which there shall be many.
SHARE = dict.fromkeys(NAMES, 1) | {"kill -9 at the n-th change of a file": 6, "kill -9 at a random time": 3}


def in_child(work: Callable[[], object], sent: signal.Signals | None = None, after: float = 0.0) -> int:
    """Its exit status: 0, 1 for an error that was told, 2 for one that was not, minus the signal.

    Args:
        sent: what the process gets after so many seconds, if it still runs.
    """
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
        code = 2
        try:
            work()
            code = 0
        except (T2IAlignError, KeyboardInterrupt):
            code = 1
        finally:
            os._exit(code)
    until = time.monotonic() + after
    while sent is not None:  # the child is not yet waited for, so its number is its own
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            os.kill(child, sent)
            break
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class World:
    """One optimizer on the toy world, and what its run gives if nothing disturbs it."""

    def __init__(self, kind: str, folder: Path, served: bool = False) -> None:
        """
        Args:
            served: its reward comes from a server.
        """
        self.kind, self.folder = kind, folder
        folder.mkdir()
        self.server = RewardServer(folder) if served else None
        self.contract = OptimizerContract(kind, folder, {"kind": kind}, {})
        started = time.monotonic()
        counted = folder / "changes"

        def run() -> None:
            counts = [0]
            operations(folder / "plain", lambda number: counts.__setitem__(0, number))
            self.go(folder / "plain")
            counted.write_text(str(counts[0]))

        with self.server.running() if self.server else nullcontext():
            status = in_child(run)
        if status:
            raise RuntimeError(f"{kind}: the undisturbed run ends with {status}")
        self.seconds = time.monotonic() - started
        self.changes = int(counted.read_text())
        self.requests = self.server.requests if self.server else 0
        self.wanted = outcome(folder / "plain" / "a")

    def go(self, runs: Path, tables: Tables | None = None) -> str:
        """Run it; gives what it said."""
        given, said = {**(tables or {})}, io.StringIO()
        options = {"out": str(runs), "name": "a", "checkpoint_every": 1, **given.pop("run", {})}
        if self.server:
            given["reward"] = [self.server.table]
        given |= {"samples": {"count": 2, "every": 2}, "evaluation": {"limit": 2}}
        runner.start(self.contract.spec(options, **given), Display(Console(file=said, width=500)))
        return said.getvalue()

    def trial(self, name: str, chooser: random.Random) -> tuple[bool, int, str]:
        """Whether it survived, lost steps, and what went wrong."""
        runs = self.folder / "trial"
        for old in (runs, self.folder / "broken"):
            shutil.rmtree(old, ignore_errors=True)

        def disturbed() -> None:
            tables: Tables = {}
            if name in FAULTS:
                FAULTS[name](chooser, runs, self.changes, self.seconds)
            elif name in PARTS:
                PARTS[name](chooser, tables, self.folder / "broken")
            said = self.go(runs, tables)
            if name == BROKEN_TRACKER and "the run goes on without it" not in said:
                raise AssertionError("the tracker did not fail")

        if self.server:
            with self.server.running(chooser.randint(1, self.requests), SERVERS[name]):
                status = in_child(disturbed)
            if status == 0 and not SERVERS[name]:
                return False, 0, f"{self.kind}: the run ended without its server"
        else:
            status = in_child(disturbed, SENT.get(name), chooser.uniform(0, self.seconds))
        if status == 2 or (status and name in (BROKEN_PLUGIN, BROKEN_TRACKER)):
            told = "an error that was not told" if status == 2 else "an error"
            return False, 0, f"{self.kind}: ended with {told}"
        with self.server.running() if self.server else nullcontext():
            return self.resumed(name, chooser, runs)

    def resumed(self, name: str, chooser: random.Random, runs: Path) -> tuple[bool, int, str]:
        """What is left of a run that a fault met, as ``trial`` gives it."""
        run = runs / "a"
        if name == DAMAGED:
            damage(chooser, run)
        if (run / "made-from.json").exists():
            again = in_child(lambda: runner.resume(run, Display(quiet=True)))
        else:  # nothing was computed yet
            shutil.rmtree(runs, ignore_errors=True)
            again = in_child(lambda: self.go(runs))
        if again:
            return False, 0, f"{self.kind}: resume ends with {again}"
        found, left = outcome(run), [str(file) for file in run.rglob(".*.tmp")]
        within = ROUNDING if name == NO_MEMORY else 0.0
        lost = sum(not any(alike(line, other, within) for other in found[0]) for line in self.wanted[0])
        files = found[1].keys() == self.wanted[1].keys() if within else found[1] == self.wanted[1]
        same = files and not lost and len(found[0]) == len(self.wanted[0])
        return same and not left, lost, f"{self.kind}: {f'left {left[:1]}' if same else 'other numbers'}"


def alike(line: dict[str, object], other: dict[str, object], within: float) -> bool:
    """Whether two lines of metrics are the same, or nearly so where sums may be taken in another order."""

    def near(a: object, b: object) -> bool:
        numbers = within and isinstance(a, int | float) and isinstance(b, int | float)
        return a == b or bool(numbers and math.isclose(a, b, rel_tol=within, abs_tol=within))

    return line.keys() == other.keys() and all(near(value, other[key]) for key, value in line.items())


def outcome(run: Path) -> tuple[list[dict[str, object]], dict[str, bytes]]:
    """The metrics, and all that is delivered but pictures of the time."""
    files = {str(f.relative_to(run)): f.read_bytes() for f in sorted((run / "export").rglob("*")) if f.is_file()}
    return RunDir(run).metrics(), {name: data for name, data in files.items() if not name.endswith(".png")}


def trials(kinds: list[str], folder: Path, chooser: random.Random, only: list[str]) -> Iterator[tuple[str, World]]:
    """Faults and optimizers in turn; an optimizer's undisturbed run comes before its first fault."""
    names = [name for name, share in SHARE.items() for _ in range(share) if any(text in name for text in only)]
    worlds: dict[str, World] = {}
    while True:
        for kind in kinds:
            chooser.shuffle(names)
            for name in names[:3]:
                served = name in SERVERS
                chosen = SERVED if served else kind
                key = f"{chosen}, served" if served else kind
                worlds[key] = worlds.get(key) or World(chosen, folder / key, served)
                yield name, worlds[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.5, help="stop after this time")
    parser.add_argument("--trials", type=int, default=360, help="stop after as many")
    parser.add_argument("--only", nargs="*", default=[""], help="faults whose name has one of these texts")
    parser.add_argument("--optimizers", nargs="*", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, chooser = time.monotonic(), random.Random(options.seed)
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    faults: list[str] = []
    kinds = options.optimizers or sorted(set(plugins.registry().parts["optimizer"]) - ELSEWHERE)
    with installed(everything=True), tempfile.TemporaryDirectory() as folder:
        used: set[str] = set()
        for number, (name, world) in enumerate(trials(kinds, Path(folder), chooser, options.only)):
            if number == options.trials or time.monotonic() - started > 60 * options.minutes:
                break
            used.add(world.kind)
            survived, lost, told = world.trial(name, random.Random(chooser.random()))
            row = rows[name]
            rows[name] = [row[0] + 1, row[1] + survived, row[2] + lost]
            faults += [] if survived else [f"{name}: {told}"]
            print(f"{number + 1} {name}, {told if not survived else world.kind}", file=sys.stderr, flush=True)
    print("| fault | tried | survived | lost steps |\n|---|---:|---:|---:|")
    for name in NAMES:
        if name in rows:
            print(f"| {name} | {rows[name][0]} | {rows[name][1]} | {rows[name][2]} |")
    tried = sum(row[0] for row in rows.values())
    print(f"\n{tried} trials over {len(used)} optimizers in {(time.monotonic() - started) / 60:.1f} minutes")
    print(json.dumps(faults, indent=2) if faults else "nothing was lost")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
