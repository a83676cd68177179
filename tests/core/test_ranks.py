"""Two ranks: they share the work, and whatever ends one of them ends both, with one message and a run that resumes."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t2ialign import cli
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage.ownership import owned
from t2ialign.testing import installed, toy, write_spec
from t2ialign.testing.ranks import ranks

QUIET = Display(quiet=True)
#: Where a rank is when something happens to it -> the function that is entered then.
MOMENTS = {
    "loading": "t2ialign.run.runner.load_optimizer",
    "step": "t2ialign.testing.toy.RandomSearch.step",
    "checkpoint": "t2ialign.run.runner._Loop._checkpoint",
    "grid": "t2ialign.run.runner._Loop._grid",
    "evaluation": "t2ialign.evaluation.evaluate._encoded",
    "export": "t2ialign.run.finish.check_export",
}


def tables(**more):
    """Five prompts on two ranks, three images each: an uneven share, and evaluations along the run."""
    return {"evaluation": {"every": 2, "images_per_prompt": 3}, "samples": {"every": 2, "count": 5}, **more}


def delivered(run: Path) -> list[bytes]:
    names = ["metrics.jsonl", "export/pytorch_lora_weights.safetensors", "evaluation/summary.json"]
    return [(run / name).read_bytes() for name in names]


def numbers(run: Path) -> list[float]:
    """Of the metrics and of the summary, in their order."""

    def of(value):
        if isinstance(value, dict):
            return [number for key in value for number in of(value[key])]
        if isinstance(value, list):
            return [number for one in value for number in of(one)]
        return [value] if isinstance(value, int | float) else []

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return of(lines) + of(json.loads((run / "evaluation/summary.json").read_text()))


def command(*words, before=lambda rank: None):
    """The command line as a rank's work; ``before`` may prepare an accident."""

    def work(rank: int) -> None:
        before(rank)
        sys.argv = ["t2ialign", *words]
        cli.main()

    return work


def accident(moment: str, rank: int, kind: str):
    """When ``rank`` comes to ``moment`` (a step: for the second time): a signal, or an exception."""

    def prepare(own: int) -> None:
        if own != rank:
            return
        place, _, name = MOMENTS[moment].rpartition(".")
        owner = pkgutil.resolve_name(place)
        real, left = getattr(owner, name), [2 if moment == "step" else 1]

        def struck(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                if kind == "exception":
                    raise RuntimeError("a planned accident")
                os.kill(os.getpid(), getattr(signal, kind))
            return real(*arguments, **options)

        setattr(owner, name, struck)

    return prepare


#: A few cells of signal x rank x moment; ``tools/stops.py`` tries them all, under torchrun.
CELLS = [
    ("SIGTERM", 1, "step"),
    ("SIGUSR1", 0, "grid"),
    ("SIGKILL", 1, "step"),
    ("exception", 1, "step"),
    ("exception", 0, "export"),
    ("SIGINT", 1, "loading"),
    ("SIGTERM", 1, "evaluation"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What two ranks deliver when nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    with installed():
        path = write_spec(folder, **tables())
        assert ranks(2, command("run", str(path)), folder / "logs").codes == [0, 0]
    return delivered(folder / "runs/spec")


@pytest.mark.parametrize(("kind", "rank", "moment"), CELLS)
def test_what_ends_one_rank_ends_both_and_loses_nothing(toy_spec, tmp_path, whole, kind, rank, moment):
    path, run = toy_spec(**tables()), tmp_path / "runs/spec"
    ended = ranks(2, command("run", str(path), before=accident(moment, rank, kind)), tmp_path / "logs", limit=40)
    assert ended.seconds < 20
    if kind == "SIGKILL":
        assert ended.codes[rank] == -signal.SIGKILL
        assert f"rank {rank} is gone" in ended.text
    elif kind == "exception":
        assert min(ended.codes) > 0
        assert f"rank {rank}: " in ended.text
        told = ended.text if moment not in ("evaluation", "export") else (run / "traceback.txt").read_text()
        assert (told.count("in struck"), "a planned accident" in ended.text) == (1, True)
    else:
        assert ended.codes == [130, 130]
        assert f"({kind} at rank {rank})" in ended.text
    assert ended.text.count("t2ialign resume") == 1
    if moment == "step":
        saved = sorted(folder.name for folder in (run / "checkpoints").iterdir())
        lost = kind in ("SIGKILL", "exception")
        expected = ["step-000001" if lost else "step-000002"]
        assert saved == ([] if (kind, rank) == ("SIGKILL", 0) else expected)  # rank 0 alone writes
    again = ranks(2, command("resume", str(run)), tmp_path / "logs")
    assert again.codes == [0, 0], again.text
    assert delivered(run) == whole


def test_two_ranks_give_the_numbers_of_one(toy_spec, tmp_path):
    path = toy_spec(**tables())
    one = runner.start(specs.load(path, ["run.name='one'"]), QUIET)
    ended = ranks(2, command("run", str(path), "--set", "run.name='two'"), tmp_path / "logs")
    assert ended.codes == [0, 0], ended.text
    two = tmp_path / "runs/two"
    assert numbers(two) == pytest.approx(numbers(one.path), abs=1e-5)
    first, second = (load_file(run / "export/pytorch_lora_weights.safetensors") for run in (one.path, two))
    assert all(first[name].equal(second[name]) for name in first)
    files = [{str(f.relative_to(run)) for f in run.rglob("*.*")} - {"log.txt"} for run in (one.path, two)]
    assert files[0] == files[1]
    assert ended.texts[1] == ""
    assert "check" in (two / "export/README.md").read_text().lower()


def refused(how: str, run: Path) -> str:
    """Make a run one that ``resume`` does not continue; gives what it says."""
    spec = run / "spec.toml"
    if how == "edited":
        spec.write_text(spec.read_text().replace("seed = 0", "seed = 1", 1))
        return "is not what this run was made from"
    if how == "unreadable":
        spec.write_text(spec.read_text() + "nonsense")
        return "spec.toml"
    return "is in use by process"


@pytest.mark.parametrize("how", ["edited", "unreadable", "held"])
def test_a_refusal_of_rank_0_ends_all_ranks_and_is_told_once(toy_spec, tmp_path, how):
    run = runner.start(specs.load(toy_spec(run={"steps": 1, "out": str(tmp_path / "runs")})), QUIET).path
    (run / "report.html").unlink()
    says = refused(how, run)
    with owned(run) if how == "held" else nullcontext():
        ended = ranks(2, command("resume", str(run)), tmp_path / "logs", limit=30)
    assert ended.codes == [2, 2]
    assert ended.text.count("error: ") == ended.text.count(says) == 1
    assert ended.texts[1] == ""
    assert ended.seconds < 10


def test_a_finished_run_says_so_on_all_ranks_once(toy_spec, tmp_path):
    run = runner.start(specs.load(toy_spec()), QUIET).path
    ended = ranks(2, command("resume", str(run)), tmp_path / "logs", limit=30)
    assert ended.codes == [0, 0]
    assert ended.text.count("is finished") == 1


def test_a_rank_that_hangs_is_named_after_the_time_out_of_the_spec(toy_spec, tmp_path):
    def hang(rank: int) -> None:
        if rank == 1:
            toy.RandomSearch.after_step = lambda self, index: time.sleep(60)

    path = toy_spec(run={"steps": 4, "out": str(tmp_path / "runs"), "timeout": 2.0})
    ended = ranks(2, command("run", str(path), before=hang), tmp_path / "logs", limit=50, grace=1)
    assert "rank 1 did not come within run.timeout = 2 s" in ended.texts[0]
    assert "t2ialign resume" in ended.texts[0]
    assert ended.codes[0] == 1
    assert ended.seconds < 20


def test_the_commands_on_a_run_share_their_work(toy_spec, tmp_path):
    path = toy_spec(**tables())
    run = runner.start(specs.load(path), QUIET).path
    before = numbers(run)
    ended = ranks(2, command("eval", str(run)), tmp_path / "logs")
    assert ended.codes == [0, 0], ended.text
    assert numbers(run) == pytest.approx(before, abs=1e-5)
    assert len(list((run / "evaluation/tuned").glob("*.png"))) == 15
    out = str(tmp_path / "exported")
    ended = ranks(2, command("export", str(run), "--out", out), tmp_path / "logs")
    assert ended.codes == [0, 0], ended.text
    assert ended.text.count("checked") == 1
    written = {file.name for file in Path(out).iterdir()}
    assert written == {file.name for file in (run / "export").iterdir()} - {"images"}


def test_sample_and_score_share_their_work(toy_spec, tmp_path):
    path = str(toy_spec())
    folders = [tmp_path / "one", tmp_path / "two"]
    for size, folder in enumerate(folders, 1):
        ended = ranks(size, command("sample", path, "-n", "3", "--out", str(folder)), tmp_path / "logs")
        assert not any(ended.codes), ended.text
        assert ended.text.count("15 images of 5 prompts") == 1
        words = ["score", str(folder), "-r", "toy-redness", "--json", str(tmp_path / f"{size}.json")]
        ended = ranks(size, command(*words), tmp_path / "logs")
        assert not any(ended.codes), ended.text
        assert ended.text.count("toy-redness") == 1
    one, two = (sorted(folder.iterdir()) for folder in folders)
    assert [file.name for file in one] == [file.name for file in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
    scores = [json.loads((tmp_path / f"{size}.json").read_text()) for size in (1, 2)]
    assert len(scores[0]["images"]) == 15
    assert scores[0]["images"] == scores[1]["images"]
    assert scores[0]["summary"] == scores[1]["summary"]
