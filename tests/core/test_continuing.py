"""What a run goes on with, who may go on with it, and how a stop at its end is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from t2ialign.errors import UsageError
from t2ialign.run import finish, runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage.ownership import owned
from t2ialign.storage.run_directory import RunDir

QUIET = Display(quiet=True)


@pytest.fixture
def stopped(toy_spec, monkeypatch):
    """A run of four steps that was stopped after the second."""
    path = toy_spec()
    real = runner._Loop._checkpoint

    def stop(self, done):
        real(self, done)
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner._Loop, "_checkpoint", stop)
        with pytest.raises(runner.Interrupted) as caught:
            runner.start(specs.load(path), QUIET)
    run = RunDir(path.parent / "runs" / "spec")
    assert f"t2ialign resume {run.path}" in str(caught.value)
    return run


def edit(run: RunDir, old: str, new: str) -> None:
    file = run.path / "spec.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("seed = 0", "seed = 5", "run.seed: 0 -> 5"), ("per_step = 5", "per_step = 4", "prompts.per_step: 5 -> 4")],
)
def test_an_edited_spec_is_not_taken_in_silence(stopped, old, new, key):
    edit(stopped, old, new)
    with pytest.raises(UsageError, match="is not what this run was made from") as caught:
        runner.resume(stopped.path, QUIET)
    assert key in str(caught.value)
    edit(stopped, new, old)
    assert runner.resume(stopped.path, QUIET).is_finished()


def test_what_would_change_the_steps_so_far_is_refused_by_key(stopped):
    with pytest.raises(UsageError, match=r"run.seed: 0 -> 3 would make the steps so far another run's"):
        runner.resume(stopped.path, QUIET, ["run.seed=3"])
    with pytest.raises(UsageError, match="the run has 2 steps already"):
        runner.resume(stopped.path, QUIET, ["run.steps=1"])
    assert stopped.changes() == []


def test_a_finished_run_says_so_and_can_be_extended(toy_spec):
    run = runner.start(specs.load(toy_spec()), QUIET)
    card = run.path / "export" / "README.md"
    before = card.read_bytes(), card.stat().st_mtime_ns
    assert runner.resume(run.path, QUIET).is_finished()
    assert (card.read_bytes(), card.stat().st_mtime_ns) == before  # nothing was done again
    longer = runner.resume(run.path, QUIET, ["run.steps=6"])
    assert [line["step"] for line in longer.metrics()] == [1, 2, 3, 4, 5, 6]
    assert longer.changes() == [{"after step": 4, "key": "run.steps", "from": 4, "to": 6}]
    assert longer.spec().run.steps == 6
    assert "`run.steps` was changed from 4 to 6 after step 4" in card.read_text()


def test_two_processes_do_not_write_one_run(stopped):
    with owned(stopped.path), pytest.raises(UsageError, match=rf"in use by process {os.getpid()} on .*, since 20"):
        runner.resume(stopped.path, QUIET)
    code = "from pathlib import Path; from t2ialign.storage.ownership import owned; "
    code += f"here = owned(Path({str(stopped.path)!r})); here.__enter__(); import os; os._exit(1)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
    assert (stopped.path / ".owner.json").exists()  # left by a process that died
    assert runner.resume(stopped.path, QUIET).is_finished()
    assert not (stopped.path / ".owner.json").exists()


@pytest.mark.parametrize("stage", ["write_export", "check_export", "evaluate_run"])
def test_a_stop_at_the_end_of_a_run_is_told_with_the_resume_command(toy_spec, monkeypatch, stage):
    def stop(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(finish, stage, stop)
        with pytest.raises(runner.Interrupted, match="continue with: t2ialign resume") as caught:
            runner.start(specs.load(toy_spec()), QUIET)
    assert caught.value.exit_code == 130
    run = RunDir(toy_spec().parent / "runs" / "spec")
    assert not run.is_finished()
    runner.resume(run.path, QUIET)
    assert run.is_finished()
    assert json.loads((run.path / "evaluation/summary.json").read_text())
