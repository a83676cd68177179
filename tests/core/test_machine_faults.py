"""Faults of the machine and of numbers: the work so far is kept, one message says what, where and how to go on."""

from __future__ import annotations

import io
import pkgutil
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import t2ialign
from t2ialign.errors import PartError, RewardError, T2IAlignError, UsageError
from t2ialign.evaluation import score as scoring
from t2ialign.lora.reading import FILE
from t2ialign.run import runner, sample
from t2ialign.run.display import Display
from t2ialign.run.finish import evaluate_run
from t2ialign.spec import parse as specs
from t2ialign.storage.run_directory import RunDir
from t2ialign.tensors.batching import with_oom_retry
from t2ialign.testing import toy

QUIET = Display(quiet=True)

#: Part of a file's name -> the steps that are kept when it cannot be written at step 3.
WRITES = {
    "metrics.jsonl": 2,
    "timing.jsonl": 3,
    "step-000003.png": 2,
    "state.safetensors": 2,
    "state.json": 2,
}


@pytest.mark.parametrize("how", ["moved", "deleted"])
@pytest.mark.parametrize("place", ["t2ialign.testing.toy.RandomSearch.step", "t2ialign.run.finish.check_export"])
def test_a_run_directory_that_goes_away_ends_the_run_in_one_message(toy_spec, undisturbed, monkeypatch, how, place):
    run, calls = undisturbed.path.with_name("a-2"), []
    real = pkgutil.resolve_name(place.replace("finish.check", "finish:check").replace("toy.Random", "toy:Random"))

    def taken_away(*arguments, **options):
        calls.append(1)
        if len(calls) == (3 if "step" in place else 1):
            shutil.rmtree(run) if how == "deleted" else run.rename(run.with_name("elsewhere"))
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(place, taken_away)
        with pytest.raises(T2IAlignError, match=r"a-2 was moved or deleted .*: t2ialign resume FOLDER") as told:
            runner.start(specs.load(toy_spec(**tables(toy_spec().parent))), QUIET)
    assert told.value.exit_code == 1
    assert not run.exists()
    assert sorted(folder.name for folder in run.parent.iterdir()) == ["a", *(["elsewhere"] if how == "moved" else [])]
    if how == "moved":
        assert runner.resume(run.with_name("elsewhere"), QUIET).metrics() == undisturbed.metrics()


@pytest.fixture
def undisturbed(toy_spec):
    return runner.start(specs.load(toy_spec(**tables(toy_spec().parent))), QUIET)


def tables(folder: Path) -> dict:
    run = {"steps": 4, "out": str(folder / "runs"), "name": "a", "checkpoint_every": 1}
    return {"run": run, "samples": {"every": 1, "count": 2}}


FULL, READ_ONLY = OSError(28, "No space left on device"), PermissionError(30, "Read-only file system")


@pytest.mark.parametrize(("file", "fault"), [*((file, FULL) for file in WRITES), ("state.safetensors", READ_ONLY)])
def test_a_disk_that_takes_no_more_ends_a_run_as_a_stop_does(toy_spec, undisturbed, monkeypatch, file, fault):
    run, steps = RunDir(undisturbed.path.with_name("a-2")), []
    real, step = io.open, toy.RandomSearch.step

    def counted(self, index):
        steps.append(index + 1)
        return step(self, index)

    def full(path, mode="r", *more, **others):
        if steps and steps[-1] == 3 and file in str(path) and set(mode) & set("wa+"):
            raise type(fault)(*fault.args, str(path))
        return real(path, mode, *more, **others)

    with monkeypatch.context() as patched:
        patched.setattr(toy.RandomSearch, "step", counted)
        patched.setattr(io, "open", full)
        with pytest.raises(T2IAlignError) as caught:
            runner.start(specs.load(toy_spec(**tables(toy_spec().parent))), QUIET)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert fault.strerror in message
    assert file in message
    assert f"the checkpoint of step {WRITES[file]} is intact; continue with: t2ialign resume {run.path}" in message
    assert not list(run.path.rglob("*.tmp"))
    runner.resume(run.path, QUIET)
    assert run.metrics() == undisturbed.metrics()
    card, others = ((one.path / "export" / "README.md").read_text() for one in (run, undisturbed))
    assert card.replace("a-2", "a") == others  # as if nothing had happened
    lora, others = (load_file(one.path / "export" / FILE) for one in (run, undisturbed))
    assert all(torch.equal(lora[name], tensor) for name, tensor in others.items())


@pytest.mark.parametrize("file", ["environment.json", "spec.toml", "made-from.json", ".owner.json"])
def test_a_disk_that_is_full_at_the_start_is_one_message_and_leaves_no_half_run(toy_spec, tmp_path, monkeypatch, file):
    real = io.open

    def full(path, mode="r", *more, **others):
        if file in str(path) and set(mode) & set("wa+"):
            raise type(FULL)(*FULL.args, str(path))
        return real(path, mode, *more, **others)

    spec = specs.load(toy_spec(**tables(tmp_path)))
    with monkeypatch.context() as patched:
        patched.setattr(io, "open", full)
        with pytest.raises(T2IAlignError, match=f"{re.escape(file)}.*: No space left on device; no") as caught:
            runner.start(spec, QUIET)
    assert caught.value.exit_code == 1
    begun = (tmp_path / "runs" / "a").exists()
    assert begun == (f"t2ialign resume {tmp_path / 'runs' / 'a'}" in str(caught.value)) == (file == ".owner.json")


def test_a_run_for_which_there_is_no_room_is_not_begun(toy_spec, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(UsageError, match=r"0 MB are free, and the run writes up to \d+ MB; take another run\.out"):
        runner.start(specs.load(toy_spec()), QUIET)
    assert not list((toy_spec().parent / "runs").iterdir())


def test_a_failed_allocation_halves_the_micro_batch_on_the_cpu_too():
    tried = []

    def draw(size: int) -> str:
        tried.append(size)
        if size > 2:
            torch.empty(2**60, dtype=torch.uint8)
        return "drawn"

    assert with_oom_retry(draw, 8) == ("drawn", 2)
    assert tried == [8, 4, 2]
    with pytest.raises(RuntimeError, match="shapes"):
        with_oom_retry(lambda size: torch.ones(2) @ torch.ones(3, 4), 8)


def test_sample_writes_the_good_images_and_lists_the_others(toy_spec, tmp_path, monkeypatch, capsys):
    plain = toy.ToyBackend.generate

    def generate(self, conditioning, seeds, sampler=None, noise=None):
        images = plain(self, conditioning, seeds, sampler, noise)
        images[[seed % 3 == 2 for seed in seeds]] = torch.nan
        return images

    monkeypatch.setattr(toy.ToyBackend, "generate", generate)
    with pytest.raises(PartError) as caught:
        sample.sample(specs.load(toy_spec()), ["red", "blue"], 3, 0, None, tmp_path / "out")
    message = str(caught.value)
    assert "2 of 6 images hold no finite numbers" in message
    assert "'red' (seed 2), 'blue' (seed 2)" in message
    assert "the decoder's pixels are not" in " ".join(capsys.readouterr().err.split())
    assert len(list((tmp_path / "out").glob("[0-9]*.png"))) == 4


def test_an_evaluation_scores_no_broken_image(toy_spec, undisturbed, monkeypatch):
    plain = toy.ToyBackend.decode
    monkeypatch.setattr(toy.ToyBackend, "decode", lambda self, latents: plain(self, latents) * torch.inf)
    _, problem, optimizer = runner.restore(undisturbed.path, display=QUIET)
    with pytest.raises(PartError, match=r"the image of 'red' \(seed \d+\) has pixels that are no finite numbers"):
        evaluate_run(undisturbed, problem, optimizer, QUIET)


@pytest.mark.parametrize(
    ("value", "words"),
    [([1.0], "returned list"), (None, "returned NoneType"), (torch.ones(1, 1), "gave shape"), (1.0j, "complex64")],
)
def test_score_names_a_reward_that_returns_something_else(tmp_path, value, words):
    class Odd(t2ialign.Reward):
        """Breaks the contract."""

        label = "reward 'odd' (mine 1.0)"

        def score(self, images, prompts):
            return torch.full((len(images),), value) if isinstance(value, complex) else value

    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(RewardError, match=rf"reward 'odd' .*{words}"):
        scoring.score_images([tmp_path / "1.png"], ["x"], {"odd": Odd.__new__(Odd)})


def test_large_pictures_are_scored_one_at_a_time(tmp_path, monkeypatch):
    held = []
    monkeypatch.setattr(scoring, "MOST_AT_ONCE", 1000)
    monkeypatch.setattr(scoring, "_score_batch", lambda paths, loaded, rewards, result: held.append(len(loaded)))
    for number, size in enumerate([20, 20, 20, 40, 40, 5]):
        Image.new("RGB", (size, size)).save(tmp_path / f"{number}.png")
    scoring.score_images(sorted(tmp_path.glob("*.png")), ["x"] * 6, {}, 32)
    assert held == [2, 1, 1, 1, 1]
