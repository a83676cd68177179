"""A run knows which commits of hub repositories it used, and a resumed one uses the same."""

from __future__ import annotations

import json

import huggingface_hub
import pytest

from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import checkpoints
from t2ialign.spec import parse as specs
from t2ialign.testing.toy import ToyBackend

QUIET = Display(quiet=True)
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Revisions that a hub was asked for; its main branch moves on after the first one."""
    found = []

    def snapshot_download(reference, revision=None, allow_patterns=(), tqdm_class=None):
        found.append(revision)
        commit = revision if revision in (OLD, NEW) else (OLD if len(found) == 1 else NEW)
        folder = tmp_path / "hub" / "snapshots" / commit
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(checkpoints, "commits", {})
    return found


def test_all_files_are_of_one_commit(asked):
    assert checkpoints.resolve("some/model").name == OLD
    assert checkpoints.resolve("some/model").name == OLD
    assert checkpoints.resolve("some/model", "other").name == NEW
    assert asked == [None, OLD, "other"]


def test_resume_uses_the_commit_of_the_first_start(asked, toy_spec, monkeypatch):
    start = ToyBackend.__init__

    def from_hub(self, *arguments, **options):
        checkpoints.resolve("some/model")
        start(self, *arguments, **options)

    monkeypatch.setattr(ToyBackend, "__init__", from_hub)
    run = runner.start(specs.load(toy_spec()), QUIET)
    assert json.loads((run.path / "environment.json").read_text())["revisions"] == {"some/model@main": OLD}
    checkpoints.commits.clear()  # another process, another day
    runner.resume(run.path, QUIET, ["run.steps=6"])
    assert asked == [None, OLD]
