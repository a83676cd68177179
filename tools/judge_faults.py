"""What the client of judges does about every kind of fault: 64 questions, a quarter of which meet one.

    python tools/judge_faults.py

A chat API on this machine misbehaves at every fourth call; the API of the last row is a process that is killed with
answers under way, and started again two seconds later. Scores are compared with what the API says of each picture when
nothing is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from judges.chat import answer, completion
from services import free_port, serving

from t2ialign_judges.config import VlmJudgeConfig
from t2ialign_judges.vlm.judge import VlmJudge

TESTS = str(Path(__file__).parents[1] / "tests")
COUNT = 64
FAULTS = {
    "none": 200,
    "500": 500,
    "503": 503,
    "hang": "hang",
    "slow headers": "slow headers",
    "slow body": "slow body",
    "connection dropped": "drop",
    "answer cut short": "cut",
    "100 MB": "huge",
    "no HTTP": "no http",
    "garbage": b"garbage",
    "no choice": {"choices": []},
    "two choices": {"choices": [{}, {}]},
    "no JSON in the answer": completion("I cannot tell"),
    "score beyond the scale": completion('{"explanation": "", "score": 11}'),
    "redirect": (302, "http://127.0.0.1:9/"),
}
IMAGES = torch.linspace(0, 1, COUNT).view(COUNT, 1, 1, 1).expand(COUNT, 3, 8, 8)
WANTED = (IMAGES[:, 0, 0, 0] * 255).round() / 255


def judge(port: int) -> VlmJudge:
    url = f"http://127.0.0.1:{port}/v1"
    return VlmJudge(
        VlmJudgeConfig(model="m", url=url, form="number", timeout=1.0, backoff=0.05, cache=False, wait=30.0)
    )


def row(name: str, port: int, calls: object) -> None:
    started = time.monotonic()
    try:
        scores = judge(port).score(IMAGES, ["a"] * COUNT)
        right = int((scores - WANTED).abs().lt(1e-5).sum())
        outcome = f"{right} of {COUNT} right"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    print(
        f"| {name} | {calls() if callable(calls) else calls} | {time.monotonic() - started:.1f} s | {outcome} |",
        flush=True,
    )


def killed() -> None:
    port = free_port()
    code = (
        f"import sys; sys.path.insert(0, {TESTS!r}); from services import Server; from judges.chat import answer\n"
        f"server = Server(answer, {port}); server.delay = 0.2; server.serve_forever()"
    )

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    processes = [start()]

    def again() -> None:
        time.sleep(1.5)
        processes[0].kill()
        time.sleep(2.0)
        processes.append(start())

    thread = threading.Thread(target=again)
    thread.start()
    row("process killed, 2 s later started again", port, "")
    thread.join()
    for process in processes:
        process.kill()
        process.wait()


def main() -> None:
    print("| a quarter of the calls meets | calls | time | scores |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["T2IALIGN_CACHE"] = folder
        for name, fault in FAULTS.items():
            with serving(answer) as server:
                server.plan = [fault if number % 4 == 0 else 200 for number in range(COUNT)]
                row(name, server.server_address[1], lambda server=server: len(server.requests))
        killed()


if __name__ == "__main__":
    main()
