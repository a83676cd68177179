"""``doctor`` and ``runs``: what they say of a machine and of a folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from t2ialign.cli import app
from t2ialign.cli.machine import doctor as doctors
from t2ialign.cli.machine.runs import described
from t2ialign.storage.ownership import owned
from t2ialign.testing.world import installed, run_spec

cli = CliRunner()


def test_doctor_names_versions_places_and_hub_and_finds_nothing_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    monkeypatch.chdir(tmp_path)
    with installed():
        answer = cli.invoke(app, ["doctor", "--offline", "--json"])
    found = {finding["what"]: finding for finding in json.loads(answer.output)["findings"]}
    assert answer.exit_code == 0, answer.output
    assert "secret-token" not in answer.output
    assert "torch " in found["packages"]["found"]
    assert str(tmp_path) in found["current folder"]["found"]
    assert "free" in found["memory"]["found"]
    assert found["hub token"]["found"] == "in HF_TOKEN"
    assert found["hub"]["state"] == "note"


def test_doctor_ends_with_1_where_a_plugin_is_broken_or_a_cache_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path / "file" / "cache"))
    broken = SimpleNamespace(name="mine", error="ImportError: no such thing", distribution="my-rewards", version="1.0")
    monkeypatch.setattr(
        doctors.registry_module, "registry", lambda: SimpleNamespace(plugins=[broken], clashes={}, parts={})
    )
    answer = cli.invoke(app, ["doctor", "--offline"])
    assert answer.exit_code == 1
    assert re.search(r"✗ prompt cache .*file is no folder", answer.output)
    assert "✗ plugin mine" in answer.output
    assert "my-rewards 1.0: ImportError: no such thing" in answer.output


def test_doctor_says_that_the_hub_does_not_answer(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = {finding.what: finding for finding in doctors._hub(offline=False)}
    assert "does not answer" in found["hub"].found
    assert found["hub"].state == "note"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, one that was stopped, and one that never began."""
    place = tmp_path_factory.mktemp("world")
    done = run_spec(place)
    stopped = done.path.with_name("stopped")
    subprocess.run(
        [sys.executable, "-c", "import shutil,sys; shutil.copytree(*sys.argv[1:])", done.path, stopped], check=True
    )
    (stopped / "report.html").unlink()
    fresh = done.path.with_name("fresh")
    (fresh / "checkpoints").mkdir(parents=True)
    (fresh / "spec.toml").write_text((done.path / "spec.toml").read_text())
    return done.path.parent


def test_runs_lists_state_step_best_reward_and_size(folder):
    answer = cli.invoke(app, ["runs", str(folder), "--json"])
    found = {run["path"].rsplit("/", 1)[1]: run for run in json.loads(answer.output)}
    assert {name: (run["state"], run["step"]) for name, run in found.items()} == {
        "spec": ("finished", 4),
        "stopped": ("stopped", 4),
        "fresh": ("never began", 0),
    }
    lines = [json.loads(line) for line in (folder / "spec" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["evaluation/toy-redness"] for line in lines if "evaluation/toy-redness" in line]
    assert found["spec"]["best"] == max(evaluated or [line["reward/toy-redness"] for line in lines])
    files = [file for file in (folder / "spec").rglob("*") if file.is_file()]
    assert found["spec"]["bytes"] == sum(file.stat().st_size for file in files)
    assert "finished" in cli.invoke(app, ["runs", str(folder)]).output


def test_a_run_that_a_process_is_at_is_running(folder):
    from t2ialign.storage.run_directory import RunDir

    with owned(folder / "fresh"):
        assert described(RunDir(folder / "fresh"))["state"] == "running"
    assert described(RunDir(folder / "fresh"))["state"] == "never began"


def test_prune_asks_and_removes_only_what_nobody_would_miss(folder):
    before = sorted((folder / "spec" / "checkpoints").iterdir())
    assert len(before) == 2
    answer = cli.invoke(app, ["runs", str(folder), "--prune"], input="n\n")
    assert answer.exit_code == 1
    assert (folder / "fresh").exists()
    answer = cli.invoke(app, ["runs", str(folder), "--prune", "--yes"])
    assert answer.exit_code == 0, answer.output
    assert not (folder / "fresh").exists()
    assert list((folder / "spec" / "checkpoints").iterdir()) == before[-1:]
    assert len(list((folder / "stopped" / "checkpoints").iterdir())) == 2
    assert described_states(folder) == {"spec": "finished", "stopped": "stopped"}


def described_states(folder):
    found = json.loads(cli.invoke(app, ["runs", str(folder), "--json"]).output)
    return {run["path"].rsplit("/", 1)[1]: run["state"] for run in found}
