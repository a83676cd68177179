"""Packages: a plugin written from the documentation, broken ones, and our own as wheels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import WORLD

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def pip_install(source: Path, target: Path) -> None:
    """Install a package into a folder of its own; it is on the path only where a test puts it there."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, timeout=300)


def t2ialign(*arguments: str | Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-m", "t2ialign", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def listing(path: Path) -> dict:
    done = t2ialign("plugins", "--json", path=path)
    found = json.loads(done.stdout)
    assert done.returncode == any(status["error"] for status in found["plugins"]), done.stderr
    return found


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of docs/writing-a-plugin.md, cut out of the page, installed."""
    page = (ROOT / "docs" / "writing-a-plugin.md").read_text()
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "t2ialign_redness.py"):
        block = re.search(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)```", page, re.DOTALL)
        assert block, f"the page has no file {name}"
        (source / name).write_text(block[1])
    pip_install(source, target)
    return target


def test_the_documented_plugin_is_listed(documented):
    parts = {(part["role"], part["kind"]): part for part in listing(documented)["parts"]}
    redness = parts["reward", "redness"]
    assert redness["distribution"] == "t2ialign-redness"
    assert redness["provides"] == ["differentiable"]
    assert "gain" in redness["options"]


def test_the_documented_plugin_is_used_in_a_run(documented, tmp_path):
    spec = tmp_path / "spec.toml"
    reward = 'kind = "redness"\ngain = 2.0\n'
    spec.write_text(WORLD.replace("OUT", str(tmp_path / "runs")).replace('kind = "shapes-graded"\n', reward))
    done = t2ialign("run", spec, "--set", "evaluation.limit=4", path=documented)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "spec" / "evaluation" / "summary.json").read_text())
    assert "redness" in summary["variants"]["tuned"]
    done = t2ialign("run", spec, "--set", "reward[0].gain=-1", path=documented)
    assert done.returncode == 2
    assert "reward[0].gain = -1: must be > 0." in done.stderr


def test_a_plugin_that_raises_at_import_is_listed_as_broken_and_hurts_nobody(tmp_path):
    info = tmp_path / "t2ialign_bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: t2ialign-bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[t2ialign]\nbad = t2ialign_bad\n")
    (tmp_path / "t2ialign_bad.py").write_text('raise RuntimeError("no such luck")\n')
    found = listing(tmp_path)
    errors = {status["name"]: status["error"] for status in found["plugins"]}
    assert errors.pop("bad") == "RuntimeError: no such luck"
    assert not any(errors.values())
    assert any(part["kind"] == "eggroll" for part in found["parts"])
    assert "broken" in t2ialign("plugins", path=tmp_path).stdout


@pytest.mark.parametrize(
    "folder", sorted(p.name for p in (ROOT / "plugins").iterdir() if (p / "pyproject.toml").exists())
)
def test_every_plugin_works_from_a_wheel(folder, tmp_path):
    pip_install(ROOT / "plugins" / folder, tmp_path)
    package = folder.replace("-", "_")
    code = f"import {package}, {package}.plugin; print({package}.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    source = ROOT / "plugins" / folder / "src" / package
    wanted = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    installed = {p.relative_to(tmp_path / package) for p in (tmp_path / package).rglob("*") if p.is_file()}
    assert wanted <= installed
    assert not [status for status in listing(tmp_path)["plugins"] if status["error"]]
