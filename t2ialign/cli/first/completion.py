"""What a shell completes besides commands and options: kinds, keys of a spec, run folders. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from t2ialign import plugins
from t2ialign.spec.parse import PARTS, TABLES


def of(role: str) -> Callable[[str], list[tuple[str, str]]]:
    """Kinds of a role, with their summaries."""

    def kinds(incomplete: str) -> list[tuple[str, str]]:
        found = plugins.registry().parts[role]
        return [(kind, found[kind].summary) for kind in sorted(found) if kind.startswith(incomplete)]

    return kinds


def keys(incomplete: str) -> list[str]:
    """Dotted keys of a spec: those of tables, and of every installed part of a role."""
    names = {f"{table}.{key}=" for table, config in TABLES.items() for key in config.model_fields}
    for role in PARTS:
        place = f"{role}.0" if role == "reward" else role
        for declared in plugins.registry().parts[role].values():
            names |= {f"{place}.{key}=" for key in declared.config.model_fields}
    return sorted(name for name in names if name.startswith(incomplete))


def runs(incomplete: str) -> list[str]:
    """Run directories below what was typed, and below ``runs``."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith(("/", "\\")) or not incomplete else typed.parent
    places = [folder] if incomplete else [Path("runs"), folder]
    found = [entry for place in places if place.is_dir() for entry in sorted(place.iterdir()) if entry.is_dir()]
    below = [entry for entry in found if (entry / "spec.toml").is_file()]
    ahead = [f"{entry}/" for entry in found if entry not in below and any(entry.glob("*/spec.toml"))]
    return [text for text in [*map(str, below), *ahead] if text.startswith(incomplete)]
