"""What a run goes on with: the spec that its checkpoints were made from, and what may change on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from t2ialign.errors import UsageError
from t2ialign.spec.model import Spec
from t2ialign.spec.problems import show
from t2ialign.storage.run_directory import RunDir

#: Keys, and tables of keys, that change nothing of what the steps so far would have been.
MAY_CHANGE = (
    "run.steps",
    "run.device",
    "run.micro_batch",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.stop_on_drift",
    "run.trackers",
    "run.timeout",
    "backend.shard",
    "evaluation.",
    "samples.",
    "export.",
    "trackers.",
)


def spec_to_continue(run: RunDir, step: int, overrides: Sequence[str] = ()) -> Spec:
    """The run's spec with what the command line changes, which the run directory then records.

    Args:
        step: of the newest checkpoint.

    Raises:
        UsageError: ``spec.toml`` was edited since the run began, or a change would not continue the run.
    """
    spec = run.spec()
    if (known := run.made_from()) is not None and (edited := _differences(known, run.tree_of(spec))):
        raise UsageError(
            f"{run.path / 'spec.toml'} is not what this run was made from: {_listed(edited)}; put the old values back,"
            " run it as a new run, or give what may change on the command line (--set run.steps=80)"
        )
    if not overrides:
        return spec
    new = run.spec(overrides)
    changes = _differences(run.tree_of(spec), run.tree_of(new))
    if wrong := {key: values for key, values in changes.items() if not key.startswith(MAY_CHANGE)}:
        raise UsageError(
            f"--set: {_listed(wrong)} would make the steps so far another run's; resume can change"
            f" {', '.join(key.rstrip('.') for key in MAY_CHANGE)}"
        )
    if new.run.steps < step:
        raise UsageError(f"--set run.steps={new.run.steps}: the run has {step} steps already")
    if changes:
        told = [{"after step": step, "key": key, "from": old, "to": now} for key, (old, now) in changes.items()]
        run.change(new, told)
    return new


def _differences(known: dict[str, Any], found: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> both values, of the keys that both have: another version may know more of them."""
    old, new = dict(_flat(known)), dict(_flat(found))
    return {key: (old[key], new[key]) for key in old.keys() & new.keys() if old[key] != new[key]}


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield prefix, tree
        return
    for key, value in items:
        name = f"[{key}]" if isinstance(key, int) else f".{key}" if prefix else key
        yield from _flat(value, prefix + name)


def _listed(changes: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key}: {show(old)} -> {show(new)}" for key, (old, new) in sorted(changes.items()))
