"""Sweeps in the toy world: every point once, on held-out prompts, going on after a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import tomli_w

from t2ialign.errors import UsageError
from t2ialign.run.display import Display
from t2ialign.storage.run_directory import RunDir
from t2ialign.sweep import effects, sweep, workers
from t2ialign.sweep.spec import Sweep

QUIET = Display(quiet=True)
GRID = {"optimizer.scale": [0.05, 0.2], "run.seed": [0, 1]}


@pytest.fixture
def write(toy_spec, tmp_path) -> Callable[..., Path]:
    (tmp_path / "heldout.txt").write_text("pink\nviolet\nbrown\n")
    toy_spec(
        run={"steps": 2, "checkpoint_every": 1, "out": str(tmp_path / "runs")}, evaluation={"prompts": "heldout.txt"}
    )

    def written(**table) -> Path:
        path = tmp_path / "scales.toml"
        tree = {"spec": "spec.toml", "out": str(tmp_path / "sweeps"), "keys": GRID, **table}
        path.write_text(tomli_w.dumps({key: value for key, value in tree.items() if value is not None}))
        return path

    return written


def test_a_grid_runs_every_combination_and_tells_every_keys_effect_and_the_winner(write, tmp_path):
    found = sweep.run(Sweep(write()), QUIET)
    folder = tmp_path / "sweeps" / "scales"
    points = [run["point"] for run in found["runs"]]
    assert points == [{"optimizer.scale": s, "run.seed": n} for s in (0.05, 0.2) for n in (0, 1)]
    for run in found["runs"]:
        spec = RunDir(folder / run["run"]).spec()
        assert (spec.optimizer.config.scale, spec.run.seed) == tuple(run["point"].values())
        summary = RunDir(folder / run["run"]).summary()
        assert summary["prompts"] == 3, "the held-out prompts, not the training prompts"
        assert run["score"] == summary["paired"]["tuned"]["toy-redness"]["mean"]
    assert found["winner"]["score"] == max(run["score"] for run in found["runs"])
    low, high = found["effects"]["optimizer.scale"]
    assert low["mean"] == pytest.approx((found["runs"][0]["score"] + found["runs"][1]["score"]) / 2)
    assert (low["runs"], high["value"]) == (2, "0.2")
    lines = list(csv.reader((folder / "table.csv").open()))
    assert lines[1][0] == found["winner"]["run"]
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "evaluate it on other prompts" in page


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child of its own")
def test_a_killed_sweep_keeps_finished_runs_and_goes_on_in_the_one_that_was_killed(write, tmp_path):
    keys = {"run.seed": [0, 1, 2]}
    whole = sweep.run(Sweep(write(out=str(tmp_path / "whole"), keys=keys)), QUIET)
    path = write(keys=keys)
    if (child := os.fork()) == 0:
        log, calls = RunDir.log, []

        def dying(*arguments, **named):
            calls.append(1)
            if len(calls) == 4:  # in the second run, after a checkpoint
                os.kill(os.getpid(), signal.SIGKILL)
            log(*arguments, **named)

        RunDir.log = dying
        sweep.run(Sweep(path), QUIET)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    folder = tmp_path / "sweeps" / "scales"
    kept = {
        run.name: (run / "report.html").stat().st_mtime_ns
        for run in folder.glob("run-*")
        if (run / "report.html").exists()
    }
    assert list(kept) == ["run-000"]
    again = sweep.run(Sweep(path), QUIET)
    for name, written in kept.items():
        assert (folder / name / "report.html").stat().st_mtime_ns == written
    assert [run["score"] for run in again["runs"]] == [run["score"] for run in whole["runs"]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the toy world is known to forked workers only")
def test_runs_side_by_side_give_what_runs_one_after_the_other_give(write, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "START", "fork")
    alone = sweep.run(Sweep(write(out=str(tmp_path / "alone"))), QUIET)
    together = sweep.run(Sweep(write(parallel=2)), QUIET)
    assert together["runs"] == alone["runs"]
    folder = tmp_path / "sweeps" / "scales"
    assert "4 of 4 runs evaluated" in (folder / "table.md").read_text()
    assert (folder / "run-000.log").read_text(), "what a worker says is in its log"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the toy world is known to forked workers only")
def test_every_device_has_one_run_at_a_time_and_a_lost_worker_is_told(write, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "START", "fork")

    def result(asked, path, point, display):
        if point["run.seed"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.monotonic()
        time.sleep(0.2)
        place = {"device": os.environ["CUDA_VISIBLE_DEVICES"], "from": began, "to": time.monotonic()}
        return {"run": path.name, "point": point, "score": 1.0, **place}

    monkeypatch.setattr(workers, "result_of", result)
    found = sweep.run(Sweep(write(devices=["3", "5"], keys={"run.seed": [0, 1, 2, 3, 4]})), QUIET)["runs"]
    assert "ended with -9; see run-001.log" in found[1]["error"]
    good = [run for run in found if run["score"]]
    assert {run["device"] for run in good} == {"3", "5"}
    for device in ("3", "5"):
        turns = sorted((run["from"], run["to"]) for run in good if run["device"] == device)
        assert all(end <= start for (_, end), (start, _) in pairwise(turns))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child of its own")
def test_a_sweep_that_is_killed_leaves_no_worker_behind_and_goes_on(write, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "START", "fork")
    real = RunDir.log
    whole = sweep.run(Sweep(write(out=str(tmp_path / "whole"))), QUIET)
    path = write(parallel=2)

    def slow(self, *arguments, **named):
        real(self, *arguments, **named)
        (tmp_path / f"{os.getpid()}.worker").touch()
        time.sleep(0.3)

    if (child := os.fork()) == 0:
        RunDir.log = slow
        sweep.run(Sweep(path), QUIET)
        os._exit(0)
    deadline = time.monotonic() + 60
    while len(pids := list(tmp_path.glob("*.worker"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while any(_alive(int(pid.stem)) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) >= 2
    assert not any(_alive(int(pid.stem)) for pid in pids)
    assert [run["score"] for run in sweep.run(Sweep(path), QUIET)["runs"]] == [run["score"] for run in whole["runs"]]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z" if Path("/proc").is_dir() else True


def test_a_random_sweep_draws_the_same_points_again_and_a_failing_run_does_not_end_it(write, monkeypatch):
    keys = {"optimizer.scale": {"low": 0.01, "high": 1.0, "log": True}, "backend": {"lora": {"rank": [1, 2]}}}
    asked = Sweep(write(method="random", runs=3, keys=keys))
    points = asked.points()
    assert points == Sweep(asked.path).points()
    assert all(0.01 <= point["optimizer.scale"] <= 1 for point in points)
    assert len({point["optimizer.scale"] for point in points}) == 3
    assert set(points[0]) == {"optimizer.scale", "backend.lora.rank"}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"keys": {"optimizer.scle": [0.1]}}, "optimizer.scle"),
        ({"keys": {"optimizer.scale": [0.1, -1.0]}}, "optimizer.scale = -1.0"),
        ({"keys": {"optimizer.scale": {"low": 0.1, "high": 1.0}}}, "a grid needs a list"),
        ({"method": "random"}, "needs a number of runs"),
        ({"method": "bayes"}, "must be one of grid, random, optuna"),
        ({"spec": "spce.toml"}, "no such file"),
        ({"reward": "blueness"}, "must be one of toy-redness"),
        ({"keys": {"optimizer.scale": []}}, "has no values"),
        ({"devices": ["0"], "parallel": 2}, "every device has one run at a time"),
        ({"devices": "each"}, "devices"),
    ],
)
def test_a_wrong_sweep_is_told_before_anything_runs(write, tmp_path, table, words):
    with pytest.raises(UsageError, match=words):
        Sweep(write(**table)).points()
    assert not (tmp_path / "sweeps").exists()


def test_another_sweep_of_the_same_name_is_refused(write):
    sweep.run(Sweep(write(keys={"run.seed": [0]})), QUIET)
    with pytest.raises(UsageError, match="other settings"):
        sweep.run(Sweep(write(keys={"run.seed": [1]})), QUIET)


def test_effects_group_many_numbers_and_leave_failed_runs_out():
    runs = [{"run": f"run-{i}", "point": {"rate": float(i)}, "score": float(i), "se": 1.0} for i in range(10)]
    runs.append({"run": "run-10", "point": {"rate": 99.0}, "score": None, "error": "no memory"})
    found = effects.effects(runs)["rate"]
    assert [row["value"] for row in found] == ["0 to 1", "2 to 3", "4 to 5", "6 to 7", "8 to 9"]
    assert [row["mean"] for row in found] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert "no memory" in effects.as_markdown(runs, "r")


def test_optuna_where_it_is_installed(write):
    pytest.importorskip("optuna")
    keys = {"optimizer.scale": {"low": 0.01, "high": 1.0}, "run.seed": [0, 1]}
    path = write(method="optuna", runs=3, keys=keys)
    first = sweep.run(Sweep(path), QUIET)
    assert json.dumps(sweep.run(Sweep(path), QUIET)) == json.dumps(first)
