"""Paths of specs and of the command line: one way for all, and nothing is begun that could not be written."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from t2ialign import places
from t2ialign.bench import suites, variants
from t2ialign.cli import app
from t2ialign.errors import SpecError, UsageError
from t2ialign.evaluation.folders import find_images
from t2ialign.run.sample import sample, slug
from t2ialign.spec import parse as specs
from t2ialign.storage.embeds import cache_root
from t2ialign.testing.world import write_spec


def called(*words: object) -> Exception | None:
    return CliRunner().invoke(app, [str(word) for word in words]).exception


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def test_a_command_knows_the_home_folder_where_the_shell_did_not(home, toy_registry):
    write_spec(home)
    assert called("validate", "~/spec.toml") is None
    (home / "runs").mkdir()
    assert called("runs", "~/runs") is None


@pytest.mark.parametrize("command", ["validate", "run", "resume", "runs", "report", "serve"])
def test_a_path_that_no_file_system_takes_is_told_by_every_command(command):
    error = called(command, "x" * 300)
    assert isinstance(error, UsageError)
    assert "has a name of 300 bytes" in str(error)


def test_a_missing_spec_is_told_in_words(tmp_path):
    assert str(called("validate", tmp_path / "a.toml")) == f"spec {tmp_path / 'a.toml'}: No such file or directory"


def test_a_bench_takes_the_home_folder(home):
    (home / "p.txt").write_text("a red circle\n")
    assert list(suites.open_suite("~/p.txt", None, None, None).lists.values()) == [["a red circle"]]
    with pytest.raises(UsageError, match=f"{home.name}/none.toml: No such file"):
        variants.plan(["~/none.toml"], [], {}, False)


def test_a_head_in_a_file_is_looked_for_below_the_spec(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "head.safetensors")
    (table,) = specs.parse_rewards([{"kind": "aesthetic", "head": "head.safetensors"}], "x", tmp_path)
    assert table.config.head == str((tmp_path / "head.safetensors").resolve())
    with pytest.raises(SpecError, match="no such file below"):
        specs.parse_rewards([{"kind": "aesthetic", "head": "other.safetensors"}], "x", tmp_path)


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("T2IALIGN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # empty says as little as absent
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert cache_root() == Path(tempfile.gettempdir()) / "t2ialign"


def test_results_that_could_not_be_written_are_told_before_the_work(tmp_path, toy_spec):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*file is no folder"):
        sample(toy_spec, ["x"], 1, 0, None, tmp_path / "file")
    assert places.unwritable_file(tmp_path) == "is a folder"
    assert places.unwritable_file(tmp_path / "none" / "a.json") == "no such folder"
    assert not places.unwritable_file(tmp_path / "a.json")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a folder that even root cannot write")
def test_a_folder_is_tried_and_not_asked():
    assert places.unwritable(Path("/proc/x")) == "/proc cannot be written"
    assert os.access("/proc", os.W_OK) or os.getuid() != 0


@pytest.mark.parametrize("pattern", ["/abs/*.png", ""])
def test_a_pattern_that_can_match_nothing_is_told(tmp_path, pattern):
    with pytest.raises(UsageError, match="--pattern"):
        find_images(tmp_path, pattern)


@pytest.mark.parametrize("text", ["𠀀" * 80, "红" * 80, "cafe\u0301 " * 40, "😀", "x" * 500])
def test_a_file_name_of_a_prompt_fits_every_file_system(text):
    assert len(f"0000_{slug(text)}_seed{2**63}.png".encode()) < 255
    assert slug("cafe\u0301") == slug("caf\u00e9")


def test_every_command_takes_a_folder_of_any_name(tmp_path, toy_registry):
    """Brackets, quotes, commas, spaces, combining accents and Chinese, in every path that a user types."""
    folder = tmp_path / "it's [1] {2}, cafe\u0301 图片" / ("long" * 10)
    folder.mkdir(parents=True)
    spec, runs = write_spec(folder), folder / "runs"
    assert called("run", spec, "--set", "run.name=one") is None
    run = runs / "one"
    assert called("resume", run, "--set", "run.steps=5") is None
    for words in (
        ("eval", run),
        ("report", run),
        ("runs", runs),
        ("run", spec, "--set", "run.name=two", "--set", "run.steps=1", "--quiet"),
        ("compare", run, runs / "two", "--out", folder / "both [x].html"),
        ("sample", spec, "--out", folder / "images [y]", "--prompts", folder / "prompts.txt", "--limit", 3),
        ("score", folder / "images [y]", "--pattern", "0*.png", "--reward", "toy-redness"),
        ("bench", folder / "prompts.txt", spec, run, "--limit", 2, "--out", folder / "bench [z]"),
        ("validate", run / "spec.toml"),
    ):
        assert called(*words) is None, words
    assert len(find_images(folder / "images [y]", "0*.png")) == 3
    assert (folder / "bench [z]" / "summary.json").is_file()
