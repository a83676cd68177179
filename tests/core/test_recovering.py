"""What a kill or a disk leaves behind, and how the next resume goes on from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from t2ialign.errors import T2IAlignError, UsageError
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage import files
from t2ialign.storage.run_directory import RunDir
from t2ialign.storage.states import Damaged

QUIET = Display(quiet=True)


@pytest.fixture
def stopped(toy_spec, monkeypatch):
    """A run of four steps that was stopped after the third, with a checkpoint of each."""
    path = toy_spec(run={"steps": 4, "out": str(toy_spec().parent / "runs"), "checkpoint_every": 1})
    real = runner._Loop._checkpoint

    def stop(self, done):
        real(self, done)
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner._Loop, "_checkpoint", stop)
        with pytest.raises(runner.Interrupted):
            runner.start(specs.load(path), QUIET)
    return RunDir(path.parent / "runs" / "spec")


@pytest.fixture
def undisturbed(toy_spec):
    """The metrics of the same run without a stop."""
    return runner.start(specs.load(toy_spec()), QUIET).metrics()


def test_what_was_found_before_the_first_step_is_kept_by_a_resumed_run(stopped):
    stopped.record(remarks=["reward 'x' scores the same images otherwise the second time, by up to 1"])
    runner.resume(stopped.path, QUIET)
    assert any("otherwise the second time" in remark for remark in stopped.remarks())
    assert "otherwise the second time" in (stopped.path / "export" / "README.md").read_text()


@pytest.mark.parametrize("survived", ["changing.json", "environment.json", "made-from.json", "spec.toml"])
def test_a_kill_inside_a_change_leaves_all_of_it(stopped, monkeypatch, survived):
    real = files.write_text

    def die(path, text):
        real(path, text)
        if path.name == survived:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_text", die)
        with pytest.raises(KeyboardInterrupt):
            runner.resume(stopped.path, QUIET, ["run.steps=6"])
    runner.resume(stopped.path, QUIET)
    assert [line["step"] for line in stopped.metrics()] == [1, 2, 3, 4, 5, 6]
    assert [change["to"] for change in stopped.changes()] == [6]
    assert not (stopped.path / "changing.json").exists()


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(stopped, undisturbed, caplog, file, damage):
    newest = stopped.path / "checkpoints" / "step-000003" / file
    content = bytearray(newest.read_bytes())
    newest.unlink()
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[-1 if file.endswith("tensors") else 0] ^= 1
        newest.write_bytes(content)
    runner.resume(stopped.path, QUIET)
    assert f"the checkpoint {newest.parent} cannot be read" in caplog.text
    assert "going back to the one before" in caplog.text
    assert stopped.metrics() == undisturbed


def test_a_finished_run_with_a_damaged_end_repeats_that_end(stopped, undisturbed):
    runner.resume(stopped.path, QUIET)
    (stopped.path / "checkpoints" / "step-000004" / "state.json").write_text("{")
    assert runner.resume(stopped.path, QUIET).metrics() == undisturbed
    assert json.loads((stopped.path / "checkpoints" / "step-000004" / "state.json").read_text())["step"] == 4


def test_without_a_checkpoint_that_can_be_read_the_run_says_so(stopped):
    for folder in (stopped.path / "checkpoints").iterdir():
        (folder / "state.safetensors").write_bytes(b"")
    with pytest.raises(Damaged, match=r"no checkpoint of .* can be read; .* t2ialign run "):
        runner.resume(stopped.path, QUIET)


def test_a_damaged_file_of_the_run_is_named(stopped):
    (stopped.path / "environment.json").write_text("{")
    with pytest.raises(T2IAlignError, match=r"environment\.json cannot be read"):
        runner.resume(stopped.path, QUIET)


def test_temporary_files_of_dead_processes_are_taken_away_at_resume(stopped):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = [f".metrics.jsonl.{int(dead.stdout)}.tmp", f"samples/.a.png.{int(dead.stdout)}.tmp", ".export.tmp/x"]
    for name in left:
        (stopped.path / name).parent.mkdir(exist_ok=True)
        (stopped.path / name).write_text("half")
    others = stopped.path / f".page.html.{os.getppid()}.tmp"
    others.write_text("of a process that lives")
    runner.resume(stopped.path, QUIET)
    assert [file.name for file in stopped.path.rglob(".*.tmp")] == [others.name]


def test_a_folder_that_was_just_being_replaced_comes_back(tmp_path):
    (tmp_path / ".best.old.tmp").mkdir()
    (tmp_path / ".best.old.tmp" / "state.json").write_text("{}")
    files.clean(tmp_path)
    assert (tmp_path / "best" / "state.json").read_text() == "{}"


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.json"
    files.write_text(file, "old")

    def fail() -> None:
        with files.replacing(file) as temporary:
            temporary.write_text("half of the n")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a.json", "old")]
    with pytest.raises(UsageError, match=r"a\.json cannot be read"):
        files.read_json(file)
