"""Imports run downwards only, with no circle, and no plugin imports another one that it does not declare."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from house.imports import circles, graph, sources, upward

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(file.parent for file in (ROOT / "plugins").glob("*/pyproject.toml"))
MOST_MODULES, MOST_LINES = 10, 400
#: Lowest first; what stands on one line may import each other and everything above the line, never below it.
ORDER = """\
errors hookspecs places foreign idle sizes
config tracker_options declaration plugins
spec
remarks
ranks
tensors
storage
parts lora
problem
evaluation report publish serve
trackers
run
estimate
bench sweep
testing
cli __main__"""


def test_the_core_imports_downwards():
    assert upward(graph(sources(ROOT / "t2ialign")), ORDER, "t2ialign") == []


@pytest.mark.parametrize("package", [ROOT / "t2ialign", *PLUGINS], ids=lambda path: path.name)
def test_there_is_no_circle(package):
    source = package if package.name == "t2ialign" else next((package / "src").glob("t2ialign_*"))
    assert circles(graph(sources(source))) == []


@pytest.mark.parametrize("package", [ROOT / "t2ialign", *PLUGINS], ids=lambda path: path.name)
def test_files_and_folders_are_small(package):
    for folder in {file.parent for file in package.rglob("*.py")}:
        modules = [file for file in folder.glob("*.py") if not file.name.startswith("__")]
        assert len(modules) <= MOST_MODULES or folder.parent.name == "src", folder
        long = [file for file in modules if len(file.read_text(encoding="utf-8").splitlines()) > MOST_LINES]
        assert not long


def test_the_core_imports_no_plugin_and_no_diffusers():
    outside = {other for others in graph(sources(ROOT / "t2ialign")).values() for other in others}
    assert not [name for name in outside if re.match(r"(t2ialign_|diffusers\b|transformers\b)", name)]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_declares_the_plugins_that_it_imports(plugin):
    project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
    extras = chain.from_iterable(project.get("optional-dependencies", {}).values())
    wanted = [*project.get("dependencies", ()), *extras]
    declared = {re.split(r"[^\w-]", text)[0].replace("-", "_") for text in wanted} | {plugin.name.replace("-", "_")}
    imported = {
        other.partition(".")[0]
        for others in graph(sources(next((plugin / "src").glob("t2ialign_*")))).values()
        for other in others
    }
    assert {name for name in imported if name.startswith("t2ialign")} <= declared


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"t2ialign.spec.parse": "from t2ialign.run import runner"}, "which lies above it"),
        (
            {
                "t2ialign.tensors.paths": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
                "    from t2ialign.problem.problem import Problem"
            },
            "which lies above it",
        ),
        ({"t2ialign.lora.adapter": "def f():\n    import t2ialign.cli.running"}, "which lies above it"),
        ({"t2ialign.spec.model": "import t2ialign"}, "imports the whole package"),
        ({"t2ialign.somewhere.new": ""}, "no level is given"),
    ],
)
def test_an_upward_import_is_seen(change, seen):
    changed = sources(ROOT / "t2ialign") | change
    assert any(seen in line for line in upward(graph(changed), ORDER, "t2ialign"))


def test_a_circle_is_seen():
    changed = sources(ROOT / "t2ialign")
    changed["t2ialign.tensors.seeding"] += "\ndef f():\n    from t2ialign.tensors.distributed import World\n"
    changed["t2ialign.tensors.distributed"] += "\nfrom t2ialign.tensors.seeding import derive\n"
    assert circles(graph(changed)) == [["t2ialign.tensors.distributed", "t2ialign.tensors.seeding"]]
