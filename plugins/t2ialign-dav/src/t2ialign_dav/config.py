"""The spec's ``[optimizer]`` tables of this plugin; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from t2ialign import LoraOptimizerConfig, OptimizerConfig, Plan, Requirements
from t2ialign.idle import Idle
from t2ialign_dav.cost import Cost, lockstep, tree

if TYPE_CHECKING:
    from t2ialign.spec.model import Spec


class SearchConfig(OptimizerConfig):
    """The E-step's options, with the defaults of the published code."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("initial_search", "particles = 1 leaves no choice", lambda own, _: own.particles == 1, "more particles"),
        Idle(
            "alpha gamma",
            "one candidate, and no gradient of its value: nothing is weighed",
            lambda own, _: own.particles == 1 and not own.value_gradient,
            "more particles, or value_gradient = true",
        ),
    )

    particles: int = Field(4, ge=1, description="candidates M for the next latent, at every step of a trajectory")
    alpha: float = Field(0.005, gt=0, description="temperature of the target p(x) exp(r / alpha); lower exploits more")
    gamma: float = Field(0.9, gt=0, le=1, description="discount of the value for every step that remains")
    value_gradient: bool = Field(
        True, description="shift the candidates along the reward's gradient; needs a differentiable reward"
    )
    initial_search: bool = Field(False, description="choose the initial latent among M, too")

    def requires(self) -> Requirements:
        needs: Requirements = {"backend": {"denoiser"}, "sampler": {"stochastic"}}
        if self.value_gradient:
            needs["backend"].add("differentiable")
            needs["reward"] = {"differentiable"}
        return needs

    @property
    def initial(self) -> int:
        """Initial latents to choose from."""
        return self.particles if self.initial_search else 1

    def cost(self, steps: int) -> Cost:
        """Of one trajectory of ``steps`` stochastic steps."""
        return lockstep(steps, steps, self.particles, self.initial, self.value_gradient)

    def plan(self, spec: Spec) -> Plan:
        spec.check_images_are_scored_alone()
        trajectories = spec.prompts.per_step * spec.prompts.images_per_prompt
        cost = self.cost(spec.sampler_config.evaluations())
        notes = {
            "each trajectory": f"{cost.forwards} forwards, {cost.decodes} decodes, {cost.backwards} backwards",
        }
        return Plan(spec.run.steps, trajectories, notes, cost.forwards)


class WeightingConfig(SearchConfig):
    """How the lock-step search weighs and guides its candidates."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "guidance_cap",
            "value_gradient = false guides nothing",
            lambda own, _: not own.value_gradient,
        ),
        Idle(
            "importance_sampling",
            "value_gradient = false leaves no guided proposal to make up for",
            lambda own, _: not own.value_gradient,
        ),
    )

    reward_unit: Literal["std", "raw"] = Field(
        "std", description="unit of alpha: the standard deviation of the base model's rewards, or the reward itself"
    )
    guidance_cap: float | None = Field(
        0.25, gt=0, description="longest guidance shift, as a fraction of the step's noise (L2 norms)"
    )
    importance_sampling: Literal["sum", "mean", "off"] = Field(
        "mean",
        description="weights make up for the guided proposal, with log-probabilities summed over latent dimensions"
        " (exact) or averaged; 'off' weighs candidates by their value alone",
    )


class LearnConfig(LoraOptimizerConfig):
    """The M-step's options, with the defaults of the published code."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "accumulation",
            "a step has fewer trajectories, and one update",
            lambda own, spec: own.accumulation > spec.prompts.per_step * spec.prompts.images_per_prompt,
            "lower it, or draw more",
        ),
    )

    hill_climbing: bool = Field(True, description="search with the current policy; false always with the base model")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the squared gradient")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's smallest divisor")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are shortened to this L2 norm")
    improve_steps: int = Field(1, ge=1, description="passes over the found trajectories")
    timestep_fraction: float = Field(1.0, gt=0, le=1, description="part of the transitions that is learnt from")
    train_kl: float = Field(0.01, ge=0, description="weight of the penalty that keeps the policy near the base model")
    accumulation: int = Field(1, ge=1, description="trajectories per optimizer update")

    def requires(self) -> Requirements:
        needs = super().requires()
        needs.setdefault("backend", set()).update({"lora", "differentiable"})
        return needs


class DavConfig(LearnConfig, WeightingConfig):
    """``kind = "dav"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("target", "with one candidate, mean and sample are the same", lambda own, _: own.particles == 1),
    )

    target: Literal["mean", "sample"] = Field(
        "mean", description="what a transition should learn to hit: the candidates' weighted mean, or the chosen one"
    )
    weight_cap: float | None = Field(
        2.0, gt=0, description="largest weight of a step in the loss, in medians over steps; none: plain log-likelihood"
    )


class DavUpstreamConfig(LearnConfig, SearchConfig):
    """``kind = "dav-upstream"``: the published code's search and losses, defects included."""

    def cost(self, steps: int) -> Cost:
        return tree(steps, self.particles, self.initial, self.value_gradient)


class DavSearchConfig(WeightingConfig):
    """``kind = "dav-search"``: the E-step alone."""
