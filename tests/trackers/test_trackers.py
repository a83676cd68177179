"""Trackers follow a run, get every step once, and can neither end nor change it."""

from __future__ import annotations

import io
import json
import time

import pytest
from rich.console import Console

from t2ialign.errors import UsageError
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing.world import installed, write_spec
from t2ialign.trackers.feed import Feed

#: A tracker's library whose first call never comes back.
HANGS = "import time\ndef __getattr__(name): return lambda *a, **k: time.sleep(600)\n"
#: One that opens, and breaks at the first metrics.
RAISES = """
config = {}
class Run:
    def log(self, metrics, step):
        if step > 1: raise ConnectionError("the server is gone")
def init(**k): return Run()
def Image(picture): return picture
"""


def followed(folder, trackers, options, overrides=()):
    """A run of four steps, and what it said."""
    path = write_spec(
        folder,
        run={"steps": 4, "out": str(folder / "runs"), "checkpoint_every": 2, "trackers": trackers},
        samples={"every": 2},
        **({"trackers": options} if trackers else {}),
    )
    said = io.StringIO()
    with installed():
        run = runner.start(specs.load(path, overrides), Display(Console(file=said, width=200)))
    return run, said.getvalue()


@pytest.mark.slow
def test_tensorboard_and_wandb_get_every_step_once_with_images_across_a_resume(tmp_path):
    pytest.importorskip("wandb")
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {"wandb": {"mode": "offline", "tags": ["toy"]}}
    run, said = followed(tmp_path, ["tensorboard", "wandb"], options, ["run.steps=2"])
    assert "tracker" not in said
    names = {
        kind: json.loads((run.path / "trackers" / f"{kind}.json").read_text()) for kind in ("tensorboard", "wandb")
    }
    with installed():
        runner.resume(run.path, Display(quiet=True), ["run.steps=4"])
    for kind, before in names.items():
        after = json.loads((run.path / "trackers" / f"{kind}.json").read_text())
        assert (before["step"], after["step"]) == (2, 4)
        assert after["id"] == before["id"]
        assert "error" not in after
    ids = {folder.name.rsplit("-", 1)[1] for folder in (run.path / "trackers" / "wandb").glob("offline-run-*")}
    assert ids == {names["wandb"]["id"]}
    assert len(list((run.path / "trackers" / "wandb").glob("offline-run-*/files/media/table/*.json"))) == 2

    events = event_accumulator.EventAccumulator(str(run.path / "trackers" / run.path.name), {"images": 0})
    events.Reload()
    metrics = {line["step"]: line["reward/toy-redness"] for line in run.metrics()}
    sent = {event.step: event.value for event in events.Scalars("reward/toy-redness")}
    assert sent == pytest.approx(metrics)
    assert len(events.Scalars("reward/toy-redness")) == 4
    assert [event.step for event in events.Scalars("timing/seconds")] == [1, 2, 3, 4]
    pictures = {event.step: event.encoded_image_string for event in events.Images("samples")}
    assert set(pictures) == {0, 2, 4}
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    assert [event.step for event in events.Images("evaluation/pairs")] == [2, 4]
    assert "toy-redness" in events.Tensors("evaluation/text_summary")[-1].tensor_proto.string_val[0].decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "library", "timeout", "told"),
    [
        ("swanlab", RAISES, 60.0, "failed: ConnectionError: the server is gone"),
        ("mlflow", HANGS, 1.0, "gave no sign of life for 1 s"),
    ],
)
def test_a_failing_tracker_is_told_once_and_changes_nothing(kind, library, timeout, told, tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"{kind}.py").write_text(library)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    started = time.monotonic()
    run, said = followed(tmp_path / "with", [kind], {"timeout": timeout})
    assert time.monotonic() - started < 50
    assert said.count(f"tracker '{kind}' {told}; the run goes on without it") == 1
    plain, _ = followed(tmp_path / "without", [], {})
    compared = [
        file.relative_to(plain.path)
        for pattern in ("metrics.jsonl", "samples/*", "checkpoints/*/*", "evaluation/**/*", "export/*")
        for file in plain.path.glob(pattern)
        if file.is_file()
    ]
    assert len(compared) > 15
    for file in compared:
        assert (run.path / file).read_bytes() == (plain.path / file).read_bytes(), file


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("t2ialign.spec.machine.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"run.trackers: 'mlflow' is not installed: pip install \"t2ialign\[mlflow\]\""
    ):
        followed(tmp_path, ["mlflow"], {})
    assert not (tmp_path / "runs").exists()


def test_a_step_is_sent_once_all_of_it_is_written(tmp_path):
    def add(name, **line):
        with (tmp_path / f"{name}.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    feed = Feed(tmp_path)
    add("metrics", step=0, reward=1.0)
    add("metrics", step=1, reward=2.0, broken=None)
    assert list(feed.steps()) == []
    add("timing", step=1, seconds=0.5)
    add("metrics", step=2, reward=3.0)
    found = [(step.number, step.metrics) for step in feed.steps()]
    assert found == [(0, {"reward": 1.0}), (1, {"reward": 2.0, "timing/seconds": 0.5})]
    assert [step.number for step in feed.steps(everything=True)] == [2]
    assert [step.number for step in Feed(tmp_path, after=1).steps(everything=True)] == [2]
