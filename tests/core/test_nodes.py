"""Several launchers as several nodes, restarts by the launcher, and another number of ranks after a stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t2ialign import cli
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing import toy
from t2ialign.testing.ranks import ranks

RANK = Path(__file__).parents[1] / "toy_rank.py"


def nodes(count: int, kind: str, *words: str, options: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    """One launcher with one rank for every node, all of them on this machine: exit codes and output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(count), "--nproc-per-node", "1"]
    common += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", f"test{port}", *options]
    launchers = [
        subprocess.Popen(
            [*common, str(RANK), kind, *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(count)
    ]
    outputs = [launcher.communicate(timeout=240)[0] for launcher in launchers]
    return [(launcher.returncode, text) for launcher, text in zip(launchers, outputs, strict=True)]


@pytest.mark.slow
def test_two_nodes_begin_again_from_the_checkpoint_when_a_rank_fails(toy_spec, tmp_path):
    path = toy_spec()
    whole = runner.start(specs.load(path, ["run.name='whole'"]), Display(quiet=True)).path
    ended = nodes(2, "SIGKILL", "run", str(path), options=("--max-restarts", "1"))
    assert [code for code, _ in ended] == [0, 0], ended
    run = tmp_path / "runs/spec"
    assert not run.with_name("spec-2").exists()
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    text = "".join(text for _, text in ended)
    assert "rank 1 is gone" in text
    assert "resuming after step" in text


def test_a_run_goes_on_with_another_number_of_ranks(toy_spec, tmp_path):
    path = toy_spec(evaluation={"every": 2, "images_per_prompt": 2})
    whole = runner.start(specs.load(path, ["run.name='whole'"]), Display(quiet=True)).path

    def stopping(rank: int) -> None:
        def step(self, index):
            if index == 1 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, index)

        real, toy.RandomSearch.step = toy.RandomSearch.step, step
        sys.argv = ["t2ialign", "run", str(path)]
        cli.main()

    assert ranks(2, stopping, tmp_path / "logs").codes == [130, 130]
    run = tmp_path / "runs/spec"

    def resuming(rank: int) -> None:
        sys.argv = ["t2ialign", "resume", str(run)]
        cli.main()

    ended = ranks(3, resuming, tmp_path / "logs")
    assert ended.codes == [0, 0, 0], ended.text
    one, other = (load_file(place / "export/pytorch_lora_weights.safetensors") for place in (whole, run))
    assert all(one[name].equal(other[name]) for name in one)
    lines = [
        [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()] for place in (whole, run)
    ]
    assert [line["step"] for line in lines[1]] == [0, 1, 2, 3, 4]
    for mine, theirs in zip(*lines, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
