"""What an author of a plugin does: write a package, test it, install it, look at it, run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from packages import listing, pip_install, python, t2ialign
from typer.testing import CliRunner

from t2ialign.cli import app
from t2ialign.cli.authoring import TEMPLATES
from t2ialign.errors import UsageError
from t2ialign.testing import toy

ROLES = ("reward", "backend", "sampler", "optimizer")


def command(*arguments: str | Path):
    """The exit code and what was printed; errors that a user can fix are raised."""
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def new_plugin(role: str, folder: Path) -> Path:
    done = command("new-plugin", role, f"my-{role}", "--out", folder)
    assert done.exit_code == 0
    assert f"t2ialign check {role}/my-{role}" in done.output
    return folder / f"t2ialign-my-{role}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One new package of every kind."""
    folder = tmp_path_factory.mktemp("written")
    return {role: new_plugin(role, folder) for role in ROLES}


@pytest.fixture(scope="module")
def site(written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four and the core, installed."""
    target = tmp_path_factory.mktemp("site")
    pip_install(target, Path(__file__).parents[2], *written.values())
    return target


@pytest.mark.slow
def test_new_packages_pass_their_own_tests(written, site, tmp_path):
    """On the installed packages: only the tests are at hand."""
    for role, folder in written.items():
        shutil.copytree(folder / "tests", tmp_path / role)
    done = python("-m", "pytest", "-v", "-p", "no:cacheprovider", *ROLES, path=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for role in ROLES:
        assert f"{role}/test_{role}.py::test_it_keeps_the_contract_of_{role}s" in done.stdout


@pytest.mark.slow
def test_new_packages_are_listed_and_run_together_in_a_spec(site, tmp_path):
    found = {(part["role"], part["kind"]): part["distribution"] for part in listing(site)["parts"]}
    assert {role: found[role, f"my-{role}"] for role in ROLES} == {role: f"t2ialign-my-{role}" for role in ROLES}
    (tmp_path / "prompts.txt").write_text("red\ngreen\n")
    tables = {role: {"kind": f"my-{role}"} for role in ROLES} | {"reward": [{"kind": "my-reward"}]}
    tables["backend"] |= {"dtype": "float32", "lora": {"rank": 2}}
    (tmp_path / "spec.toml").write_text(
        tomli_w.dumps({"run": {"steps": 2}, "prompts": {"file": "prompts.txt"}, **tables})
    )
    done = t2ialign("run", "spec.toml", path=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "spec" / "evaluation" / "summary.json").read_text())
    assert "my-reward" in summary["variants"]["tuned"]


@pytest.mark.slow
def test_check_runs_the_contract_on_an_installed_part(site):
    done = t2ialign("check", "backend/my-backend", "--set", 'dtype="float32"', path=site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("backend 'my-backend' (t2ialign-my-backend 0.1.0)\n  passed  ")
    assert done.stdout.endswith("12 of 12 checks passed\n")


@pytest.mark.parametrize("kind", ["toy-flow", "toy-step", "toy-steps", "toy-search", "toy-darkness"])
def test_check_passes_what_is_right(kind, toy_registry, environment):
    options = ["--set", "checkpoint=pkg:t2ialign_shapes"] if kind == "toy-flow" else []
    done = command("check", kind, *options)
    assert done.exit_code == 0, done.output
    assert "FAILED" not in done.output


def test_new_packages_are_formatted(written):
    for arguments in (["check", "--select", "E,F,I,B,UP"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, *map(str, written.values())],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_no_word_of_the_template_is_left(written):
    for role, folder in written.items():
        files = [file for file in folder.rglob("*") if file.is_file() and file.suffix in (".py", ".md", ".toml")]
        assert len(files) == len([*(TEMPLATES / "common").rglob("*.tmpl"), *(TEMPLATES / role).rglob("*.tmpl")])
        text = "".join(file.read_text() + str(file.relative_to(folder)) for file in files)
        assert not [word for word in ("$", "MODULE", "CLASS", "KIND") if word in text]
        assert "## Gotchas" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["My-Reward", "my_reward", "9lives", "-x", "x-", "a b", "../x", ""])
def test_a_name_that_is_no_kind_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match="is no kind: small letters"):
        command("new-plugin", "reward", "--out", tmp_path, "--", name)
    assert not list(tmp_path.iterdir())


def test_names_that_are_taken_are_refused(tmp_path, toy_registry):
    with pytest.raises(UsageError, match="reward 'toy-redness' exists already"):
        command("new-plugin", "reward", "toy-redness", "--out", tmp_path)
    with pytest.raises(UsageError, match="a package t2ialign-solvers is installed already"):
        command("new-plugin", "reward", "solvers", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    mine = tmp_path / "t2ialign-mine"
    mine.mkdir()
    (mine / "work.txt").write_text("weeks of it")
    with pytest.raises(UsageError, match="t2ialign-mine exists"):
        command("new-plugin", "sampler", "mine", "--out", tmp_path)
    assert [file.name for file in mine.iterdir()] == ["work.txt"]
    with pytest.raises(UsageError, match="no such folder"):
        command("new-plugin", "sampler", "mine", "--out", tmp_path / "nowhere")


@pytest.fixture
def environment(monkeypatch):
    """``check`` sets a variable for the process that it has to itself."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")


def test_check_prints_what_failed_and_why(toy_registry, environment, monkeypatch):
    def score(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images.mean()

    assert command("check", "toy-redness", "--set", "gain=2.0").exit_code == 0
    monkeypatch.setattr(toy.Redness, "score", score)
    done = command("check", "reward/toy-redness")
    assert done.exit_code == 1
    assert "FAILED  A score does not depend on the other images of the batch" in done.output
    assert "a score must not depend on the other images of its batch" in done.output
    assert "passed  One finite float32 score per image" in done.output
    assert done.output.splitlines()[-1].endswith("of 7 checks passed")


def test_check_tells_what_it_needs(toy_registry, environment):
    with pytest.raises(UsageError, match="needs checkpoint = 'nobody/nothing', which is not on this machine"):
        command("check", "toy-model", "--set", "checkpoint=nobody/nothing")
    with pytest.raises(UsageError, match="gain = -1: must be > 0"):
        command("check", "toy-redness", "--set", "gain=-1")
    with pytest.raises(UsageError, match="no such part is installed; did you mean 'toy-redness'"):
        command("check", "toy-rednes")
    with pytest.raises(UsageError, match="no role 'colour'"):
        command("check", "colour/toy-redness")
