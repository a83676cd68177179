"""Packages: a plugin written from the documentation, broken ones, and our own as wheels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def pip_install(source: Path, target: Path) -> None:
    """Install a package into a folder of its own; it is on the path only where a test puts it there."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, timeout=300)


def t2ialign(*arguments: str | Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "t2ialign", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def listing(path: Path) -> dict:
    done = t2ialign("plugins", "--json", path=path)
    found = json.loads(done.stdout)
    assert done.returncode == any(status["error"] for status in found["plugins"]), done.stderr
    return found


TUTORIALS = sorted((ROOT / "docs" / "plugins").glob("*.md"))


def files_of(page: Path) -> dict[str, str]:
    """The files that a tutorial shows: a name in backticks, then a block."""
    found = re.findall(
        r"`([\w.-]+\.(?:py|toml))`[^\n]*:?\n(?:[^\n`]*\n)*?\n?```\w+\n(.*?)```", page.read_text(), re.DOTALL
    )
    return dict(found)


@pytest.mark.parametrize("page", [page for page in TUTORIALS if files_of(page)], ids=lambda page: page.stem)
def test_a_tutorials_package_installs_passes_its_contract_and_runs(page, tmp_path):
    files, source, target = files_of(page), tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    pip_install(source, target)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    (part,) = [part for part in listing(target)["parts"] if part["distribution"] == project["name"]]
    assert part["role"] == page.stem
    done = t2ialign("check", part["kind"], path=target)
    assert done.returncode == 0, done.stdout + done.stderr
    done = t2ialign("run", source / "spec.toml", "--set", f'run.out="{tmp_path}"', path=target)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "spec" / "report.html").is_file()


def test_a_documented_reward_scores_a_folder_and_its_options_are_checked(tmp_path):
    from PIL import Image

    page, source, target = ROOT / "docs" / "plugins" / "reward.md", tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, text in files_of(page).items():
        (source / name).write_text(text)
    pip_install(source, target)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8), "red").save(pictures / "0000.png")
    out = tmp_path / "scores.json"
    done = t2ialign("score", pictures, "-r", "redness", "--prompt", "anything", "--json", out, path=target)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["images"][0]["scores"]["redness"] == pytest.approx(1.0)
    done = t2ialign("run", source / "spec.toml", "--set", "reward[0].gain=-1", path=target)
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
