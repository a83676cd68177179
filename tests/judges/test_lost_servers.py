"""Runs whose judge dies: a server that is killed and started again costs no step and no bit."""

from __future__ import annotations

import threading
import time

import pytest
from judges.chat import started
from services import free_port

import t2ialign_judges.plugin
from t2ialign.errors import Unavailable
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage.run_directory import RunDir
from t2ialign.testing import installed, write_spec

QUIET = Display(quiet=True)
STEPS = 4
#: What a run makes, but for the times that it took.
FILES = ("metrics.jsonl", "evaluation/scores.jsonl", "evaluation/summary.json")


@pytest.fixture
def server():
    """A port and what starts the API there, or kills it."""
    port, processes = free_port(), []

    def switch(on):
        if on:
            processes.append(started(port, delay=0.02))
        else:
            processes[-1].kill()
            processes[-1].wait()

    yield port, switch
    for process in processes:
        process.kill()
        process.wait()


def spec_of(folder, port, monkeypatch, **options):
    folder.mkdir()
    monkeypatch.setenv("T2IALIGN_CACHE", str(folder / "cache"))  # each run asks for itself
    judge = {"kind": "vlm-judge", "url": f"http://127.0.0.1:{port}/v1", "model": "m", "backoff": 0.05}
    judge |= {"timeout": 20.0, "concurrency": 4}  # no more than wait for a busy server's accept at once
    run = {"steps": STEPS, "out": str(folder / "runs"), "checkpoint_every": 50}
    prompts = {"file": "prompts.txt", "per_step": 4, "images_per_prompt": 2}
    return specs.load(write_spec(folder, reward=[judge | options], run=run, prompts=prompts))


def at_the_first_step(folder, act):
    """Do something as soon as a step is logged; the thread and the steps that were logged by then."""
    log, seen = folder / "runs" / "spec" / "metrics.jsonl", []

    def wait():
        while not (log.exists() and any('"step": 1' in line for line in log.read_text().splitlines())):
            time.sleep(0.001)
        act(False)
        seen.append(log.read_text().count('"step"'))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, seen


def same(one, other):
    for file in FILES:
        assert (one.path / file).read_bytes() == (other.path / file).read_bytes(), file
    exports = [sorted((run.path / "export").rglob("*.safetensors")) for run in (one, other)]
    assert exports[0]
    assert [file.read_bytes() for file in exports[0]] == [file.read_bytes() for file in exports[1]]


def test_a_server_that_is_killed_and_started_again_loses_no_step(server, tmp_path, monkeypatch):
    port, switch = server
    switch(True)
    with installed(t2ialign_judges.plugin):
        whole = runner.start(spec_of(tmp_path / "whole", port, monkeypatch, wait=60.0), QUIET)

        # One that comes back while the run waits for it: the run goes on.
        spec = spec_of(tmp_path / "waits", port, monkeypatch, wait=60.0)
        killer, seen = at_the_first_step(tmp_path / "waits", switch)
        back = threading.Timer(0.0, lambda: (killer.join(), time.sleep(0.5), switch(True)))
        back.start()
        waits = runner.start(spec, QUIET)
        back.join()
        assert seen[0] < len(RunDir.open(waits.path).metrics())
        same(waits, whole)

        # One that stays away for longer: the run stops with a checkpoint, and is resumed.
        spec = spec_of(tmp_path / "stops", port, monkeypatch, wait=2.0)
        at_the_first_step(tmp_path / "stops", switch)
        with pytest.raises(Unavailable, match=r"stopped after step [1-4]; continue with: t2ialign resume "):
            runner.start(spec, QUIET)
        path = tmp_path / "stops" / "runs" / "spec"
        steps = len(RunDir.open(path).metrics())
        assert list((path / "checkpoints").iterdir()) == [path / "checkpoints" / f"step-{steps:06d}"]
        switch(True)
        same(runner.resume(path, QUIET), whole)
