"""Discovery of plugins through the entry-point group "t2ialign", and look-up of what they registered."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from t2ialign import hookspecs
from t2ialign.config import Config, Requirements
from t2ialign.errors import UsageError

GROUP = "t2ialign"
ROLES = ("backend", "sampler", "reward", "optimizer")


@dataclass(frozen=True)
class Declaration:
    """One registered part. ``target`` is a class, or "package.module:Class" that is imported on ``load()``."""

    role: str
    kind: str
    target: type | str
    config: type[Config]
    summary: str
    provides: frozenset[str]
    requires: Requirements
    distribution: str
    version: str

    def load(self) -> type:
        if not isinstance(self.target, str):
            return self.target
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


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


def nearest(word: str, words: Iterable[str]) -> str:
    """The closest of ``words``, or an empty string when none is close."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)), "")


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


def declare(
    role: str,
    kind: str,
    target: type | str,
    config: type[Config] | None = None,
    summary: str | None = None,
    provides: Iterable[str] = (),
    requires: Requirements | None = None,
    distribution: str = "",
    version: str = "",
) -> Declaration:
    """Check one registration.

    Raises:
        TypeError: a lazy target without config or summary, or a target that is neither class nor "module:Class".
    """
    where = f"{role} '{kind}'"
    if isinstance(target, str):
        if ":" not in target:
            raise TypeError(f"{where}: target '{target}' must be a class or 'package.module:Class'")
        if config is None or summary is None:
            raise TypeError(f"{where}: a lazy target needs config= and summary=")
        words = set(provides)
    elif isinstance(target, type):
        config = config or getattr(target, "Config", Config)
        summary = summary or (target.__doc__ or kind).strip().splitlines()[0]
        flags = {"differentiable": "differentiable", "per_prompt": "per-prompt"}
        words = set(provides) | {word for flag, word in flags.items() if getattr(target, flag, False) is True}
    else:
        raise TypeError(f"{where}: target must be a class or 'package.module:Class', not {type(target).__name__}")
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise TypeError(f"{where}: config must subclass t2ialign.Config")
    return Declaration(role, kind, target, config, summary, frozenset(words), requires or {}, distribution, version)
