"""Runs whose reward lives in another process: the same numbers, and no step lost when that process dies."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image
from services import free_port, serving
from worlds import WORLD

import t2ialign_rewards.plugin
from t2ialign import RewardError
from t2ialign.errors import Unavailable
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage.run_directory import RunDir
from t2ialign.testing import installed, write_spec

QUIET = Display(quiet=True)


def redness(request):
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) / 255 for text in request["images"]]
    return {"scores": [float(p[..., 0].mean() - p[..., 1:].mean()) for p in pictures]}


def remote_spec(folder, port, **options):
    folder.mkdir()
    table = {"kind": "remote", "url": f"http://127.0.0.1:{port}/", "backoff": 0.01, "wait": 0.2, **options}
    return write_spec(folder, reward=[table], run={"steps": 4, "out": str(folder / "runs"), "checkpoint_every": 50})


@pytest.mark.parametrize(("fault", "kind"), [(503, Unavailable), (500, RewardError)])
def test_a_run_whose_server_dies_loses_no_step(tmp_path, fault, kind):
    port = free_port()
    with installed(t2ialign_rewards.plugin):
        with serving(redness, port):
            whole = runner.start(specs.load(remote_spec(tmp_path / "whole", port)), QUIET)
        spec = specs.load(remote_spec(tmp_path / "cut", port))
        with serving(redness, port) as server:
            threading.Thread(target=fall_silent_after_step, args=(tmp_path / "cut", server, fault), daemon=True).start()
            with pytest.raises(kind, match=r"stopped after step [123]; continue with: t2ialign resume ") as stop:
                runner.start(spec, QUIET)
        path = tmp_path / "cut" / "runs" / "spec"
        assert str(path) in str(stop.value)
        steps = len(RunDir.open(path).metrics())
        assert list((path / "checkpoints").iterdir()) == [path / "checkpoints" / f"step-{steps:06d}"]
        with serving(redness, port):
            resumed = runner.resume(path, QUIET)
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert resumed.summary() == whole.summary()


def fall_silent_after_step(folder, server, fault):
    """Once a step is logged, the server refuses everything."""
    log = folder / "runs" / "spec" / "metrics.jsonl"
    while not (log.exists() and any('"step": 1' in line for line in log.read_text().splitlines())):
        time.sleep(0.001)
    server.plan = [fault] * 10_000


SERVED = """
[[reward]]
kind = "shapes-geneval"
form = "graded"
"""


@pytest.fixture
def process(tmp_path):
    """``t2ialign serve`` in another process."""
    (tmp_path / "rewards.toml").write_text(SERVED)
    port = free_port()
    command = [sys.executable, "-m", "t2ialign", "serve", str(tmp_path / "rewards.toml"), "--port", str(port)]
    started = subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE, text=True, env=os.environ)
    while started.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health")
            break
        except httpx.TransportError:
            time.sleep(0.1)
    yield started, port
    started.kill()
    started.wait()


def test_a_run_on_the_shapes_world_is_the_same_bit_for_bit(process, tmp_path):
    started, port = process
    runs = {}
    for name, options in {
        "here": 'kind = "shapes-geneval"\nform = "graded"',
        "there": f'kind = "remote"\nurl = "http://127.0.0.1:{port}/rewards"\nsend = "float32"\nbatch = 3',
    }.items():
        text = WORLD.replace("OUT", str(tmp_path / name)).replace(
            'kind = "shapes-graded"', f'{options}\nname = "rules"'
        )
        text = text.replace("prompts/train.txt", "prompts/benchmark.jsonl").replace("steps = 1", "steps = 2")
        text = text.replace("population = 4", "population = 8\nsigma = 0.3\nlearning_rate = 0.2")
        text = text.replace("per_step = 2", "per_step = 6\n[evaluation]\nlimit = 8")
        (tmp_path / f"{name}.toml").write_text(text)
        runs[name] = runner.start(specs.load(tmp_path / f"{name}.toml"), QUIET)
    for file in ("metrics.jsonl", "evaluation/scores.jsonl", "export/pytorch_lora_weights.safetensors"):
        here, there = ((run.path / file).read_bytes() for run in runs.values())
        if file.endswith(".safetensors"):  # the header names the rewards
            here, there = (bytes_[8 + int.from_bytes(bytes_[:8], "little") :] for bytes_ in (here, there))
        assert here == there, file
    scores = [line["base"]["rules"] for line in map(json.loads, (runs["here"].path / "evaluation/scores.jsonl").open())]
    assert len(set(scores)) > 1
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=20) in (0, -signal.SIGTERM)
