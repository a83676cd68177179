"""Packages: a plugin written from the documentation, broken ones, and our own as wheels."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from packages import listing, pip_install, python, t2ialign

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(file.parent.name for file in (ROOT / "plugins").glob("*/pyproject.toml"))
pytestmark = pytest.mark.slow


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
    pip_install(target, source)
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
    pip_install(target, source)
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core and every plugin as wheels, in a folder far from the repository."""
    target = tmp_path_factory.mktemp("site")
    pip_install(target, ROOT, *(ROOT / "plugins" / folder for folder in PLUGINS))
    return target


@pytest.mark.parametrize("folder", ["t2ialign", *PLUGINS])
def test_every_package_works_from_a_wheel(folder, site, tmp_path):
    package = folder.replace("-", "_")
    source = ROOT / package if folder == "t2ialign" else ROOT / "plugins" / folder / "src" / package
    entry = "cli" if folder == "t2ialign" else "plugin"
    entry = f", {package}.{entry}" if list(source.glob(f"{entry}*")) else ""
    done = python("-c", f"import {package}{entry}; print({package}.__file__)", path=site, alone=True, cwd=tmp_path)
    assert done.stdout.startswith(str(site)), done.stderr
    wanted = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    installed = {p.relative_to(site / package) for p in (site / package).rglob("*") if p.is_file()}
    assert wanted <= installed


def test_the_quickstart_runs_from_wheels_without_the_repository(site, tmp_path):
    shutil.copy(ROOT / "specs" / "quickstart.toml", tmp_path)
    small = ("run.steps=2", "optimizer.population=4", "prompts.per_step=4", "evaluation.limit=6")
    few = [word for key in small for word in ("--set", key)]
    done = t2ialign("run", "quickstart.toml", *few, path=site, alone=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "quickstart"
    assert (run / "export" / "pytorch_lora_weights.safetensors").exists()
    assert json.loads((run / "evaluation" / "summary.json").read_text())["images"] == 18
    code = "import sys, t2ialign.run.runner, t2ialign_eggroll.eggroll, t2ialign_sana.sprint, t2ialign_rewards.clip;"
    code += "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('t2ialign')), sep='\\n')"
    files = python("-c", code, path=site, alone=True, cwd=tmp_path).stdout.splitlines()
    assert len(files) > 30
    assert all(file.startswith(str(site)) for file in files)
    assert not [status for status in listing(site, alone=True)["plugins"] if status["error"]]
