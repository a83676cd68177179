"""A world in which a spec runs in a second: the toy parts, the plugins under test, and nothing else installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import tomli_w

from t2ialign import plugins
from t2ialign.plugins import Registry
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.storage.run_directory import RunDir
from t2ialign.testing import toy

#: The training prompts of ``write_spec``.
PROMPTS = ("red", "green", "blue", "black", "white")


def entry_point(name: str, plugin: Any, distribution: str = "toy-dist", version: str = "1.0") -> Any:
    """An object that looks like importlib.metadata's EntryPoint; an exception as plugin is raised on load."""

    def load() -> Any:
        if isinstance(plugin, BaseException):
            raise plugin
        return plugin

    value = getattr(plugin, "__name__", type(plugin).__name__)
    dist = SimpleNamespace(name=distribution, version=version)
    return SimpleNamespace(name=name, value=value, group=plugins.GROUP, load=load, dist=dist)


@contextmanager
def installed(*modules: Any, everything: bool = False) -> Iterator[Registry]:
    """Inside, only the toy parts and the given plugins (modules or objects with hooks) are installed.

    Args:
        everything: and all plugins that really are.

    Raises:
        AssertionError: a plugin does not load; says why.
    """
    named = {getattr(module, "__name__", type(module).__name__): module for module in (toy, *modules)}
    really = entry_points(group=plugins.GROUP) if everything else ()
    found = plugins.load([*(entry_point(name, module, name) for name, module in named.items()), *really])
    for status in found.plugins:
        assert not (status.name in named and status.error), f"plugin '{status.name}' does not load: {status.error}"

    def registry() -> Registry:
        return found

    with mock.patch("t2ialign.plugins.registry", registry), mock.patch("t2ialign.spec.parse.registry", registry):
        yield found


def write_spec(folder: Path, **tables: Any) -> Path:
    """Write a spec of four toy steps, and its prompts, into a folder.

    Args:
        folder: where ``spec.toml`` and ``prompts.txt`` are written; run directories appear in its ``runs``.
        tables: replace whole tables: ``reward=[{"kind": "redness"}]``; None leaves a table out.
    """
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")
    tree: dict[str, Any] = {
        "run": {"steps": 4, "out": str(folder / "runs"), "checkpoint_every": 2},
        "backend": {"kind": "toy-model", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 2}},
        "sampler": {"kind": "toy-step"},
        "optimizer": {"kind": "toy-search"},
        "reward": [{"kind": "toy-redness"}],
        "prompts": {"file": "prompts.txt", "per_step": 5, "images_per_prompt": 8},
        **tables,
    }
    path = folder / "spec.toml"
    path.write_text(tomli_w.dumps({name: table for name, table in tree.items() if table is not None}), encoding="utf-8")
    return path


def run_spec(folder: Path, *modules: Any, **tables: Any) -> RunDir:
    """Write a spec (see ``write_spec``), run it with only the toy parts and the given plugins installed.

    Returns:
        The finished run: ``metrics()``, ``summary()``, ``path``.
    """
    path = write_spec(folder, **tables)
    with installed(*modules):
        return runner.start(specs.load(path), Display(quiet=True))
