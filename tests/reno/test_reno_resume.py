"""Runs that die: the resumed run ends with the same images, and does not search again what is finished."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
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


def forked(work: Callable[[], object], errors: Path) -> multiprocessing.Process:
    """A process that runs ``work`` without the seconds that starting torch takes; what it says goes into a file."""

    def child() -> None:
        out = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        work()

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    return process


@pytest.mark.slow
def test_kill_nine_at_random_moments(reno_spec, tmp_path, monkeypatch):
    """Killed again and again until one attempt gets through; nothing shows in the images."""
    path = reno_spec(run={"checkpoint_every": 3, "name": "whole"}, optimizer={"restarts": 2})
    whole = runner.start(specs.load(path), QUIET).path
    path.write_text(path.read_text().replace('name = "whole"', 'name = "killed"'))
    victim, moments, kills = whole.parent / "killed", random.Random(3), 0
    last = len((whole / "metrics.jsonl").read_text().splitlines()) - 1
    quick = noise_search.NoiseSearch.step

    def step(self, index):
        # No machine is quick enough to get through before it was killed twice: until then the last steps wait.
        time.sleep(600 if kills < 2 and index >= last else 0.05)
        return quick(self, index)

    monkeypatch.setattr(noise_search.NoiseSearch, "step", step)
    process = forked(lambda: runner.start(specs.load(path), QUIET), tmp_path / "said.txt")
    while process.is_alive():
        while process.is_alive() and not (victim / "timing.jsonl").exists():
            time.sleep(0.05)
        process.join(moments.uniform(0.1, 1.0) + 1.0 * kills)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            process = forked(lambda: runner.resume(victim, QUIET), tmp_path / "said.txt")
    assert process.exitcode == 0, (tmp_path / "said.txt").read_text()
    assert kills >= 2
    assert without_name(delivered(victim), "killed") == without_name(delivered(whole), "whole")
