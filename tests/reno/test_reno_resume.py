"""Runs that die: the resumed run ends with the same images, and does not search again what is finished."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t2ialign.errors import PartError
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign_reno import noise_search

QUIET = Display(quiet=True)


def delivered(run: Path) -> dict[str, bytes]:
    """Every file of the export and the metrics, to the last bit."""
    files = [run / "metrics.jsonl", run / "evaluation" / "summary.json", *sorted((run / "export").rglob("*"))]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if file.is_file()}


def without_name(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {path: content.replace(name.encode(), b"NAME") for path, content in files.items()}


def test_a_crash_in_any_step_changes_nothing(reno_spec, monkeypatch):
    options = {"optimizer": {"patience": 3, "learning_rate": 300.0}, "prompts": {"per_step": 2}}
    whole = runner.start(specs.load(reno_spec(**options), ["run.name=whole"]), QUIET)
    step = noise_search.NoiseSearch.step
    for crash_at in (0, 5, 7, 17):

        def dying(self, index, crash_at=crash_at):
            if index == crash_at:
                raise RuntimeError("power cut")
            return step(self, index)

        name = f"crash{crash_at}"
        with monkeypatch.context() as patch:
            patch.setattr(noise_search.NoiseSearch, "step", dying)
            with pytest.raises(PartError, match="power cut"):
                runner.start(specs.load(reno_spec(**options), [f"run.name={name}"]), QUIET)
        run = runner.resume(whole.path.parent / name, QUIET)
        assert without_name(delivered(run.path), name) == without_name(delivered(whole.path), "whole")


def test_finished_images_are_not_searched_again(reno_spec, monkeypatch):
    """Killed after three of five prompts: the resumed run begins only the other two."""
    path = reno_spec(prompts={"per_step": 1}, run={"checkpoint_every": 1})
    step = noise_search.NoiseSearch.step

    def dying(self, index):
        if index == 18:
            raise RuntimeError("power cut")
        return step(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(noise_search.NoiseSearch, "step", dying)
        with pytest.raises(PartError, match="power cut"):
            runner.start(specs.load(path), QUIET)
    folder = next((path.parent / "runs").iterdir())
    finished = sorted((folder / "output").iterdir())
    assert [one.name for one in finished] == [f"{index:05d}-0-0" for index in range(3)]
    before = {one: (one / "best.png").stat().st_mtime_ns for one in finished}
    images = []
    evaluate = noise_search.Engine._evaluate

    def counting(self, point, searches, iterations, move):
        images.extend(search.item.prompt for search in searches)
        return evaluate(self, point, searches, iterations, move)

    monkeypatch.setattr(noise_search.Engine, "_evaluate", counting)
    runner.resume(folder, QUIET)
    assert images == ["black"] * 6 + ["white"] * 6
    assert {one: (one / "best.png").stat().st_mtime_ns for one in finished} == before


CHILD = """
import sys, pathlib, time
sys.path.insert(0, {tests!r})
sys.path.insert(0, {here!r})
import conftest
from t2ialign.errors import PartError
from t2ialign.run import runner
from t2ialign.spec import parse
from t2ialign.testing import installed
from t2ialign_reno import noise_search, plugin
quick = noise_search.NoiseSearch.step
def step(self, index):
    time.sleep(0.05)
    return quick(self, index)
noise_search.NoiseSearch.step = step
path = pathlib.Path(sys.argv[2])
with installed(conftest.ToyWorld(), plugin):
    runner.start(parse.load(path)) if sys.argv[1] == "run" else runner.resume(path)
"""


def child(command: str, path: Path) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    code = CHILD.format(tests=str(here.parent), here=str(here))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, command, str(path)], env=environment, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_kill_nine_at_random_moments(reno_spec):
    """Killed again and again until one attempt gets through; nothing shows in the images."""
    path = reno_spec(run={"checkpoint_every": 3, "name": "whole"}, optimizer={"restarts": 2})
    whole = runner.start(specs.load(path), QUIET).path
    path.write_text(path.read_text().replace('name = "whole"', 'name = "killed"'))
    victim, moments, kills = whole.parent / "killed", random.Random(3), 0
    process = child("run", path)
    while process.poll() is None:
        while process.poll() is None and not (victim / "timing.jsonl").exists():
            time.sleep(0.05)
        try:
            process.wait(timeout=moments.uniform(0.1, 1.0) + 1.0 * kills)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            process = child("resume", victim)
    assert process.returncode == 0, process.stderr.read().decode()
    assert kills >= 2
    assert without_name(delivered(victim), "killed") == without_name(delivered(whole), "whole")
