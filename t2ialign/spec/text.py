"""A spec as text: the resolved TOML. No torch."""

from __future__ import annotations

from typing import Any

import tomli_w

from t2ialign.config import Config
from t2ialign.spec.model import Spec


def to_tree(spec: Spec) -> dict[str, Any]:
    """The resolved spec as nested dicts, defaults filled in (TOML has no null: unset keys are left out)."""

    def table(config: Config) -> dict[str, Any]:
        return config.model_dump(exclude_none=True)

    tree: dict[str, Any] = {"run": {**table(spec.run), "name": spec.name}}
    tree["backend"] = {"kind": spec.backend.kind, **table(spec.backend.config)}
    if spec.sampler:
        tree["sampler"] = {"kind": spec.sampler.kind, **table(spec.sampler.config)}
    tree["optimizer"] = {"kind": spec.optimizer.kind, **table(spec.optimizer.config)}
    tree["prompts"] = table(spec.prompts)
    tree["evaluation"] = table(spec.evaluation)
    tree["samples"] = table(spec.samples)
    tree["export"] = table(spec.export)
    if spec.run.trackers:
        options = table(spec.trackers)
        tree["trackers"] = {name: options[name] for name in ("timeout", *spec.run.trackers)}
    tree["reward"] = [{"kind": r.kind, **table(r.mix), **table(r.config)} for r in spec.rewards]
    return tree


def to_toml(tree: dict[str, Any], comment: str) -> str:
    """TOML text with a comment on top."""
    return "".join(f"# {line}\n" for line in comment.splitlines()) + "\n" + tomli_w.dumps(tree)
