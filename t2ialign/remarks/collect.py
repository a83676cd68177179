"""What of a spec has no effect, or less than it says: told before the work, by every command in the same words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from t2ialign.config import Config
from t2ialign.errors import blaming
from t2ialign.foreign import shown
from t2ialign.idle import given
from t2ialign.remarks.tables import idle_of
from t2ialign.spec.model import Chosen, ChosenReward, Spec

#: What ``sample`` uses of a spec; with a search it uses the other parts, too.
DRAWING = ("backend", "sampler")
SEARCHING = (*DRAWING, "optimizer", "reward")
#: What ``eval`` uses.
EVALUATING = (*DRAWING, "evaluation", "reward")
#: More images than this in one step are rarely meant.
MANY_IMAGES = 50_000


def remarks(spec: Spec, prompts: Sequence[str], used: Collection[str] = ()) -> list[str]:
    """One sentence each, about options at the settings of the others, and about prompts that are not read to their end.

    A value that is the default is never remarked on. No torch; what only a checkpoint can tell is told once it is on
    disk.

    Args:
        prompts: all that the command uses.
        used: tables and roles that the command uses; all unless given.
    """
    found: list[str] = []
    tables = ("run", "prompts", "evaluation", "samples", "trackers")
    for name in (name for name in tables if not used or name in used):
        found += _idle(f"{name}.", getattr(spec, name), spec)
    if spec.export.formats and not spec.uses_lora and (not used or "export" in used):
        found.append(f"export.formats: the optimizer '{spec.optimizer.kind}' delivers no LoRA")
    chosen = {"backend": spec.backend, "sampler": spec.sampler, "optimizer": spec.optimizer}
    if not used and (count := spec.optimizer_config.plan(spec).images_per_step) > MANY_IMAGES:
        found.append(f"images per step = {count:,}: at ten a second a step takes {count / 36000:,.1f} hours")
    for role, part in chosen.items():
        if part is not None and (not used or role in used):
            found += of_part(role, part, prompts, spec)
    for reward in spec.rewards if not used or "reward" in used else ():
        found += of_part("reward", reward, prompts, spec)
    return found


def of_part(role: str, part: Chosen, prompts: Sequence[str], spec: Spec | None = None) -> list[str]:
    """The remarks on one part; ``spec`` is None where a reward scores outside of a run."""
    name = f"reward '{part.name}'" if isinstance(part, ChosenReward) else role
    found = [*_idle(f"{name}: " if role == "reward" else f"{name}.", part.config, spec)]
    if isinstance(part, ChosenReward) and spec is not None:
        found += _idle(f"{name}: ", part.mix, spec)
    with blaming(part.declaration.label):
        own = part.config.remarks(prompts)
    return [*found, *(f"{name}: {sentence}" for sentence in own)]


def all_prompts(spec: Spec) -> list[str]:
    """Every prompt that a run of the spec uses, once."""
    return list(dict.fromkeys([*spec.training_prompts(), *spec.evaluation_prompts()]))


def _idle(where: str, options: Config, spec: Spec | None) -> Iterator[str]:
    """Of one table, and of those in it."""
    for idle in idle_of(type(options)):
        names = [name for name in idle.options.split() if given(options, name)]
        if names and idle.holds(options, spec):
            yield from (f"{where}{name} = {_short(getattr(options, name))}: {idle.when}" for name in names)
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, Config):
            yield from _idle(f"{where}{name}.", value, spec)
        elif isinstance(value, list | tuple):
            for index, one in enumerate(value):
                if isinstance(one, Config):
                    yield from _idle(f"{where}{name}[{index}].", one, spec)


def _short(value: object) -> str:
    """A value in a remark."""
    return shown(f"{value:g}" if isinstance(value, float) else repr(value), 60)
