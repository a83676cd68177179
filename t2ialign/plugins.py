"""Discovery of plugins through the entry-point group "t2ialign", and look-up of what they registered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from t2ialign import hookspecs
from t2ialign.config import Config, Requirements
from t2ialign.declaration import ROLES, Declaration, declare
from t2ialign.errors import UsageError, nearest

GROUP = "t2ialign"


@dataclass
class PluginStatus:
    """How loading one entry point went; ``error`` is empty when it went well."""

    name: str
    distribution: str
    version: str
    error: str = ""


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


@cache
def registry() -> Registry:
    """The registry of this process, loaded from the installed entry points on first use."""
    return load(entry_points(group=GROUP))


def load(points: Iterable[EntryPoint]) -> Registry:
    """Load entry points one at a time, so that a broken plugin is listed and hurts nobody."""
    found = Registry()
    for point in sorted(points, key=lambda point: point.name):
        dist = point.dist
        status = PluginStatus(point.name, dist.name if dist else "?", dist.version if dist else "?")
        found.plugins.append(status)
        try:
            _register(found, point.load(), status)
        except Exception as error:
            status.error = f"{type(error).__name__}: {error}"
    return found


def _register(found: Registry, plugin: Any, status: PluginStatus) -> None:
    """Collect one plugin's declarations; they count only if all its hooks went through."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name=status.name)
    known = [name for name in dir(hookspecs) if name.startswith("t2ialign_")]
    for name in dir(plugin):
        if name not in known and hasattr(getattr(plugin, name), f"{hookspecs.PROJECT}_impl"):
            hint = nearest(name, known)
            raise UsageError(
                f"unknown hook '{name}'" + (f", did you mean '{hint}'?" if hint else f"; hooks: {', '.join(known)}")
            )

    collected: list[Declaration] = []
    for role in ROLES:

        def register(
            kind: str,
            target: type | str,
            *,
            config: type[Config] | None = None,
            summary: str | None = None,
            provides: Iterable[str] = (),
            requires: Requirements | None = None,
            role: str = role,
        ) -> None:
            collected.append(
                declare(role, kind, target, config, summary, provides, requires, status.distribution, status.version)
            )

        getattr(manager.hook, f"t2ialign_{role}s")(register=register)

    for declaration in collected:
        key = (declaration.role, declaration.kind)
        previous = found.parts[declaration.role].setdefault(declaration.kind, declaration)
        if previous is not declaration:
            found.clashes.setdefault(key, [previous.distribution]).append(declaration.distribution)
