"""Discovery of plugins through the entry-point group "t2ialign", and look-up of what they registered."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from t2ialign import hookspecs
from t2ialign.declaration import ROLES, Declaration, declare
from t2ialign.errors import UsageError, nearest

GROUP = "t2ialign"


@dataclass
class PluginStatus:
    """How loading one entry point went; ``error`` is empty when it went well.

    Attributes:
        seconds: how long its import took.
        imports_torch: it was the first to import torch, which makes every command slow.
    """

    name: str
    distribution: str
    version: str
    error: str = ""
    seconds: float = 0.0
    imports_torch: bool = False


@dataclass
class Registry:
    """All parts of all plugins, and the plugins that failed.

    Attributes:
        clashes: (role, kind) -> the distributions that claim it; using such a kind is an error.
    """

    parts: dict[str, dict[str, Declaration]] = field(default_factory=lambda: {role: {} for role in ROLES})
    plugins: list[PluginStatus] = field(default_factory=list)
    clashes: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def find(self, role: str, kind: str) -> Declaration:
        """The declaration of a kind.

        Raises:
            UsageError: unknown kind (with the nearest word, and the broken plugins that might have had it), or one
                that two distributions claim.
        """
        if (role, kind) in self.clashes:
            raise UsageError(
                f"{role} '{kind}' is registered by {' and '.join(self.clashes[role, kind])}; uninstall one of them"
            )
        if kind in self.parts[role]:
            return self.parts[role][kind]
        raise UsageError(self.unknown(role, kind))

    def unknown(self, role: str, kind: str) -> str:
        known = sorted(self.parts[role])
        message = f"no {role} of this kind is installed; installed: {', '.join(known) or 'none'}."
        if broken := [status.name for status in self.plugins if status.error]:
            message += f" Plugins that failed to load: {', '.join(broken)} (see 't2ialign plugins')."
        return message


#: Not empty while plugins are being registered.
_loading: list[bool] = []


@cache
def registry() -> Registry:
    """The registry of this process, loaded from the installed entry points on first use.

    Raises:
        UsageError: a plugin asks for it while plugins are being registered.
    """
    if _loading:
        raise UsageError("asks for the registry while plugins are being registered; ask where the part is used")
    _loading.append(True)
    try:
        return load(entry_points(group=GROUP))
    finally:
        _loading.clear()


def load(points: Iterable[EntryPoint]) -> Registry:
    """Load entry points one at a time, so that a broken plugin is listed and hurts nobody."""
    found = Registry()
    for point in sorted(points, key=lambda point: point.name):
        dist = point.dist
        status = PluginStatus(point.name, dist.name if dist else "?", dist.version if dist else "?")
        found.plugins.append(status)
        before, started, printed = "torch" in sys.modules, time.perf_counter(), io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):  # stdout may be JSON that somebody reads
                _register(found, _module(point), status)
        except SystemExit as error:
            status.error = f"exited at import (SystemExit: {error.code})"
        except Exception as error:
            status.error = f"{type(error).__name__}: {error}"
        status.seconds = time.perf_counter() - started
        status.imports_torch = not before and "torch" in sys.modules
        for line in printed.getvalue().splitlines():
            print(f"plugin {status.name}: {line}", file=sys.stderr)
    return found


def _module(point: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        UsageError: its value is malformed.
    """
    value = getattr(point, "value", None)
    if value is not None and not re.fullmatch(r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*)?", value.strip()):
        raise UsageError(f"the entry point '{point.name} = {value}' is malformed; write package.module")
    return point.load()


def _register(found: Registry, plugin: Any, status: PluginStatus) -> None:
    """Collect one plugin's declarations; they count only if all its hooks went through."""
    known = [name for name in dir(hookspecs) if name.startswith("t2ialign_")]
    _check_hooks(plugin, known)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name=status.name)

    collected: list[Declaration] = []
    for role in ROLES:

        def register(kind: str, target: type | str, *, role: str = role, **options: Any) -> None:
            collected.append(
                declare(role, kind, target, **options, distribution=status.distribution, version=status.version)
            )

        getattr(manager.hook, f"t2ialign_{role}s")(register=register)
    if not collected:
        what = f"the entry point names the class {plugin.__name__}, not a module: " if isinstance(plugin, type) else ""
        raise UsageError(f"{what}registered nothing; a plugin registers parts in its hooks: {', '.join(known)}")

    for declaration in collected:
        key = (declaration.role, declaration.kind)
        previous = found.parts[declaration.role].setdefault(declaration.kind, declaration)
        if previous is not declaration:
            found.clashes.setdefault(key, [previous.distribution]).append(declaration.distribution)


def _check_hooks(plugin: Any, known: list[str]) -> None:
    """
    Raises:
        UsageError: a hook is misspelt, not marked as one, or names its argument otherwise.
    """
    for name in dir(plugin):
        hook = getattr(plugin, name)
        marked = hasattr(hook, f"{hookspecs.PROJECT}_impl")
        if name in known and not marked:
            raise UsageError(f"registered nothing: '{name}' lacks @t2ialign.hookimpl")
        if name in known and list(inspect.signature(hook).parameters) != ["register"]:
            raise UsageError(f"the argument of '{name}' is called register")
        if marked and name not in known:
            hint = nearest(name, known)
            raise UsageError(
                f"unknown hook '{name}'" + (f", did you mean '{hint}'?" if hint else f"; hooks: {', '.join(known)}")
            )
