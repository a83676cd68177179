"""Do the parts of a spec fit together? Compares what each requires with what the others provide. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from t2ialign.errors import SpecProblem

if TYPE_CHECKING:
    from t2ialign.plugins import Registry
    from t2ialign.spec.model import Chosen, ChosenReward


def capability_problems(
    backend: Chosen | None,
    sampler: Chosen | None,
    optimizer: Chosen | None,
    rewards: Sequence[ChosenReward],
    parts: Registry,
) -> list[SpecProblem]:
    """Every unmet requirement, naming both sides and the alternatives that would fit.

    Only rewards with a weight count: a held-out diagnostic need not be differentiable.
    """
    chosen: dict[str, list[Chosen]] = {
        "backend": [backend] if backend else [],
        "sampler": [sampler] if sampler else [],
        "reward": [reward for reward in rewards if reward.mix.weight != 0],
    }
    problems: list[SpecProblem] = []
    for role, part in (("optimizer", optimizer), ("sampler", sampler), *(("reward", r) for r in rewards)):
        if part is None:
            continue
        for other, words in part.requires().items():
            for candidate in chosen[other]:
                missing = words - candidate.provides()
                if missing:
                    problems.append(_mismatch(role, part, other, candidate, missing, words, parts))
    return problems


def _mismatch(
    role: str, part: Chosen, other: str, candidate: Chosen, missing: set[str], words: set[str], parts: Registry
) -> SpecProblem:
    fitting = [kind for kind, declared in sorted(parts.parts[other].items()) if words <= declared.provides]
    instead = [
        kind
        for kind, declared in sorted(parts.parts[role].items())
        if declared.requires.get(other, set()) <= candidate.provides() and kind != part.kind
    ]
    message = (
        f"needs a {other} that is {_list(missing)}, and {other} '{candidate.kind}' is"
        f" {_list(candidate.provides()) or 'none of these'}."
        f" A {other} that fits: {', '.join(fitting) or 'none installed'}."
    )
    if role == "optimizer":
        message += f" An optimizer that fits this {other}: {', '.join(instead) or 'none installed'}."
    message += "".join(f" {remedy}." for word, remedy in part.config.remedies().items() if word in missing)
    for word, remedy in candidate.config.withholds().items():
        if word in missing:
            message += f" '{word}' is lost by the {other}'s options: {remedy}."
    return SpecProblem(f"{role}.kind", f'"{part.kind}"', message)


def _list(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in sorted(words))
