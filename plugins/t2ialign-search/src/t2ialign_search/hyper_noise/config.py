"""The options of ``hyper-noise``; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from t2ialign import LoraOptimizerConfig, Plan, Requirements, UsageError
from t2ialign.idle import Idle

if TYPE_CHECKING:
    from t2ialign.spec.model import Spec


class HyperNoiseConfig(LoraOptimizerConfig):
    """``kind = "hyper-noise"`` (arXiv 2508.09968); the defaults are those of the published code."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "warmup",
            "the run has fewer updates, and never reaches learning_rate",
            lambda own, spec: own.warmup > spec.run.steps,
            "lower it, or more run.steps",
        ),
        Idle("regulariser", "regularisation = 0 weighs no penalty", lambda own, _: own.regularisation == 0),
    )

    solver: Literal["sgd", "adamw"] = Field("sgd", description="with momentum 0.9, or AdamW")
    learning_rate: float = Field(1e-3, gt=0, description="after the warm-up")
    warmup: int = Field(10, ge=0, description="updates over which the learning rate rises from 0")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are shortened to this L2 norm")
    regularisation: float = Field(
        0.5, ge=0, description="weight of the residual's penalty; with 'half_sum', 1 is the published objective"
    )
    regulariser: Literal["mean", "half_sum", "norm"] = Field(
        "mean",
        description="of the residual: the mean of its squares, half their sum (larger by half the latent's size), or"
        " how unusual the norm of the refined noise is",
    )
    noise: Literal["fresh", "shared", "one"] = Field(
        "fresh", description="noise of an update: each image's own, one for all its images, or one for the whole run"
    )
    last_layer: str | None = Field(
        None, description="the network's last projection, of which only the LoRA counts; default: its last layer"
    )

    def requires(self) -> Requirements:
        needs = super().requires()
        needs.setdefault("backend", set()).update({"differentiable", "one-step"})
        return {**needs, "sampler": {"differentiable"}, "reward": {"differentiable"}}

    def calls_kept(self, evaluations: int) -> int:
        return 1 + evaluations

    def plan(self, spec: Spec) -> Plan:
        if spec.export.formats:
            raise UsageError(
                "a noise network is no LoRA that others load: leave export.formats out; the export has its own loader"
            )
        spec.check_images_are_scored_alone()
        plan = super().plan(spec)
        return Plan(plan.steps, plan.images_per_step, plan.notes, 1 + spec.sampler_config.evaluations())
