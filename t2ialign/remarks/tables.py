"""Options of the core's tables that do nothing at some settings of the others."""

from __future__ import annotations

import math
import os

from t2ialign.config import (
    BackendConfig,
    Config,
    EvaluationConfig,
    LoraConfig,
    PromptsConfig,
    RewardMixConfig,
    RunConfig,
    SamplesConfig,
)
from t2ialign.idle import Idle, declared
from t2ialign.spec.checkpoints import is_local
from t2ialign.spec.model import ChosenReward, Plan, Spec
from t2ialign.tracker_options import (
    MlflowConfig,
    SwanlabConfig,
    TensorBoardConfig,
    TrackersConfig,
    TrackioConfig,
    WandbConfig,
)

NOTHING = "nothing: it does no harm"


def _plan(spec: Spec) -> Plan:
    return spec.optimizer_config.plan(spec)


def _steps(spec: Spec) -> int:
    return _plan(spec).steps


def _evaluated(spec: Spec) -> int:
    return len(spec.evaluation_prompts()) * spec.evaluation.images_per_prompt


def _weighs(reward: ChosenReward) -> bool:
    return reward.mix.weight != 0


def _column_idle(reference: str) -> bool:
    return reference.lower().endswith(".txt")


def _tracker(name: str, options: type[Config]) -> tuple[type[Config], tuple[Idle, ...]]:
    """Options of a tracker that the run does not name."""
    when = f"run.trackers does not name '{name}'"
    fix = f'set run.trackers = ["{name}"], or leave it out'
    return options, (Idle(" ".join(options.model_fields), when, lambda own, spec: name not in spec.run.trackers, fix),)


#: Options of a table -> when they are idle; those that a plugin declares stand in its own classes of options.
IDLE: dict[type[Config], tuple[Idle, ...]] = {
    RunConfig: (
        Idle("steps", "the optimizer goes by its passes", lambda own, spec: not spec.optimizer_config.uses_run_steps),
        Idle(
            "micro_batch",
            "a step and an evaluation have fewer images",
            lambda own, spec: own.micro_batch > max(_plan(spec).images_per_step, _evaluated(spec)),
            NOTHING,
        ),
        Idle(
            "checkpoint_every",
            "the run has fewer steps, and saves one checkpoint, at its end",
            lambda own, spec: own.checkpoint_every > _steps(spec),
            "lower it if a kill shall lose less",
        ),
        Idle(
            "timeout",
            "with one process there is no other to wait for",
            lambda own, spec: int(os.environ.get("WORLD_SIZE", "1")) == 1,
            "nothing, if the run is to have several",
        ),
        Idle(
            "keep_checkpoints",
            "the run saves fewer",
            lambda own, spec: (
                own.checkpoint_every and own.keep_checkpoints > math.ceil(_steps(spec) / own.checkpoint_every)
            ),
            "lower checkpoint_every, or nothing",
        ),
    ),
    PromptsConfig: (
        Idle(
            "column",
            "a .txt file has no columns",
            lambda own, spec: _column_idle(own.file) and (spec.evaluation.prompts or spec.evaluation.column is None),
        ),
        Idle(
            "per_step",
            "the file has fewer prompts, and a step repeats some",
            lambda own, spec: own.per_step > len(spec.training_prompts()),
            "more images_per_prompt say the same",
        ),
    ),
    EvaluationConfig: (
        Idle(
            "every",
            "the run has fewer steps: it is evaluated before the first and after the last one",
            lambda own, spec: own.every > _steps(spec),
            "lower it for a curve",
        ),
        Idle(
            "drift_threshold",
            "no reward is held out: degenerate images alone raise the alarm",
            lambda own, spec: all(reward.mix.weight for reward in spec.rewards),
            "add a held-out [[reward]] of weight 0",
        ),
        Idle("limit", "there are fewer prompts", lambda own, spec: own.limit > len(spec.evaluation_prompts()), NOTHING),
        Idle(
            "column",
            "without evaluation.prompts, prompts.column counts",
            lambda own, spec: not own.prompts,
            "set prompts.column",
        ),
        Idle("column", "a .txt file has no columns", lambda own, spec: bool(own.prompts) and _column_idle(own.prompts)),
    ),
    SamplesConfig: (
        Idle(
            "every",
            "the run has fewer steps: it draws the first and the last grid",
            lambda own, spec: own.every > _steps(spec),
            "lower it for more grids",
        ),
        Idle(
            "count",
            "there are fewer evaluation prompts",
            lambda own, spec: own.count > len(spec.evaluation_prompts()),
            NOTHING,
        ),
    ),
    RewardMixConfig: (
        Idle(
            "weight",
            "the scale of a single reward changes nothing under this optimizer",
            lambda own, spec: (
                own.weight > 0 and spec.optimizer_config.scale_free() and sum(map(_weighs, spec.rewards)) == 1
            ),
        ),
        Idle(
            "range",
            "only normalise = 'range' reads it",
            lambda own, spec: own.normalise != "range",
            "set normalise, or leave it out",
        ),
        Idle(
            "normalise",
            "plays no part at weight = 0: a held-out reward is reported as it is",
            lambda own, _: own.weight == 0,
        ),
    ),
    BackendConfig: (
        Idle("revision", "only checkpoints of the hub have revisions", lambda own, _: is_local(own.checkpoint)),
    ),
    LoraConfig: (
        Idle(
            "rank alpha targets init init_prompts start",
            "the optimizer trains no LoRA",
            lambda own, spec: spec is not None and not spec.uses_lora,
        ),
        Idle(
            "init_prompts",
            "only init = 'activations' reads prompts",
            lambda own, spec: own.init != "activations" and spec.uses_lora,
            "set init, or leave it out",
        ),
        Idle(
            "rank",
            "the ranks are those of start",
            lambda own, spec: own.start is not None and spec.uses_lora,
        ),
    ),
    TrackersConfig: (Idle("timeout", "run.trackers names none", lambda own, spec: not spec.run.trackers),),
    **dict(
        (
            _tracker("tensorboard", TensorBoardConfig),
            _tracker("wandb", WandbConfig),
            _tracker("trackio", TrackioConfig),
            _tracker("mlflow", MlflowConfig),
            _tracker("swanlab", SwanlabConfig),
        )
    ),
}


def idle_of(options: type[Config]) -> list[Idle]:
    """All that is declared for a class of options, in the core and by its plugin."""
    core = [found for base in reversed(options.__mro__) for found in IDLE.get(base, ())]
    return [*core, *declared(options)]
