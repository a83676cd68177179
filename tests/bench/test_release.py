"""The release script, on files that only look like packages."""

from __future__ import annotations

import importlib.util
import tarfile
import zipfile
from pathlib import Path

import pytest

import t2ialign

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dist(release, tmp_path):
    for name in release.packages():
        stem, module = f"{name.replace('-', '_')}-{release.version()}", name.replace("-", "_")
        (tmp_path / "py.typed").write_text("")
        with zipfile.ZipFile(tmp_path / f"{stem}-py3-none-any.whl", "w") as wheel:
            wheel.write(tmp_path / "py.typed", f"{module}/py.typed")
        with tarfile.open(tmp_path / f"{stem}.tar.gz", "w:gz") as sdist:
            sdist.add(tmp_path / "py.typed", f"{stem}/src/{module}/py.typed")
    (tmp_path / "py.typed").unlink()
    return tmp_path


def test_every_package_comes_after_what_it_depends_on(release):
    order = list(release.packages())
    assert order[0] == "t2ialign"
    assert len(order) == 1 + len(list((ROOT / "plugins").glob("*/pyproject.toml")))
    assert order.index("t2ialign-diffusers") < order.index("t2ialign-sana")


def test_every_package_says_that_it_is_typed(release):
    for name, folder in release.packages().items():
        module = folder / ("src" if folder != ROOT else "") / name.replace("-", "_")
        assert (module / "py.typed").is_file(), name


def test_whole_files_pass_and_missing_stray_and_foreign_ones_are_named(release, dist):
    assert release.check(dist, twine=False) == []
    wheel = next(dist.glob("t2ialign_sana-*.whl"))
    with zipfile.ZipFile(wheel, "a") as opened:
        opened.writestr("t2ialign_sana/__pycache__/x.pyc", "")
    next(dist.glob("t2ialign_dav-*.tar.gz")).unlink()
    (dist / "t2ialign_dav-0.0.9.tar.gz").write_bytes(b"")
    wrong = release.check(dist, twine=False)
    assert [line.split(" ")[1] for line in wrong] == ["is", "holds", "is"]
    assert "t2ialign_dav" in wrong[0]
    assert "0.0.9" in wrong[2]


def test_notes_are_of_the_version_that_is_released(release, monkeypatch):
    assert release.version() == t2ialign.__version__
    assert "### " in release.notes()
    monkeypatch.setattr(release, "version", lambda: "9.9.0")
    with pytest.raises(SystemExit, match=r"9\.9\.0"):
        release.notes()
