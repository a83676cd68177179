"""What of a spec has no effect, or less than it says: told before the work, by every command in the same words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from t2ialign.spec.model import Spec


def remarks(spec: Spec, prompts: Sequence[str]) -> list[str]:
    """One sentence each, about options at the settings of the others, and about prompts that are not read to their end.

    A value that is the default is never remarked on. No torch; what only a checkpoint can tell is told once it is on
    disk.

    Args:
        prompts: all that the command uses.
    """
    found = [*_run(spec), *_prompts(spec), *_lora(spec), *_rewards(spec)]
    parts = {"backend": spec.backend, "sampler": spec.sampler, "optimizer": spec.optimizer}
    parts |= {f"reward '{reward.name}'": reward for reward in spec.rewards}
    for name, chosen in parts.items():
        if chosen is not None:
            found += [f"{name}: {sentence}" for sentence in chosen.config.remarks(prompts)]
    return found


def all_prompts(spec: Spec) -> list[str]:
    """Every prompt that a run of the spec uses, once."""
    return list(dict.fromkeys([*spec.training_prompts(), *spec.evaluation_prompts()]))


def _run(spec: Spec) -> Iterator[str]:
    run, plan = spec.run, spec.optimizer_config.plan(spec)
    steps = f"a run of {plan.steps} steps"
    if _chosen(run, "checkpoint_every") and run.checkpoint_every > plan.steps:
        yield f"run.checkpoint_every = {run.checkpoint_every}: {steps} saves one checkpoint, at its end"
    if _chosen(run, "micro_batch") and run.micro_batch > plan.images_per_step:
        yield f"run.micro_batch = {run.micro_batch}: a step has {plan.images_per_step} images"
    if _chosen(spec.samples, "every") and spec.samples.every > plan.steps:
        yield f"samples.every = {spec.samples.every}: {steps} draws the first and the last grid"
    if run.stop_on_drift and spec.evaluation.every == 0:
        yield "run.stop_on_drift: evaluation.every = 0 leaves no evaluation along the run that could find drift"


def _prompts(spec: Spec) -> Iterator[str]:
    evaluation, count = spec.evaluation, len(spec.evaluation_prompts())
    if evaluation.limit and evaluation.limit > count:
        yield f"evaluation.limit = {evaluation.limit}: there are {count} evaluation prompts"
    if evaluation.column and not evaluation.prompts:
        yield f"evaluation.column = '{evaluation.column}': without evaluation.prompts, prompts.column counts"
    if _chosen(spec.samples, "count") and spec.samples.count > count:
        yield f"samples.count = {spec.samples.count}: there are {count} evaluation prompts"


def _lora(spec: Spec) -> Iterator[str]:
    lora, kind = spec.backend_config.lora, spec.optimizer.kind
    given = [name for name in type(lora).model_fields if _chosen(lora, name)]
    if given and not spec.uses_lora:
        yield f"backend.lora.{given[0]}: the optimizer '{kind}' trains no LoRA"
    elif "init_prompts" in given and lora.init != "activations":
        yield f"backend.lora.init_prompts = {lora.init_prompts}: only init = 'activations' reads prompts"
    elif "rank" in given and lora.start is not None:
        yield f"backend.lora.rank = {lora.rank}: the ranks are those of lora.start"
    if spec.export.formats and not spec.uses_lora:
        yield f"export.formats: the optimizer '{kind}' delivers no LoRA"


def _rewards(spec: Spec) -> Iterator[str]:
    for reward in spec.rewards:
        if reward.mix.range is not None and reward.mix.normalise != "range":
            yield f"reward '{reward.name}': range is read by normalise = 'range' only, not by '{reward.mix.normalise}'"
        if reward.mix.weight == 0 and reward.mix.normalise != "none":
            yield f"reward '{reward.name}': normalise = '{reward.mix.normalise}' plays no part at weight = 0"


def _chosen(table: object, key: str) -> bool:
    """Whether an option has another value than its default; resolved specs write out both."""
    return bool(getattr(table, key) != type(table).model_fields[key].get_default(call_default_factory=True))  # type: ignore[attr-defined]
