"""The spec's ``[optimizer]`` tables of this plugin; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from t2ialign import LoraOptimizerConfig, Plan, Requirements, UsageError
from t2ialign.idle import Idle

if TYPE_CHECKING:
    from t2ialign.spec.model import Spec


#: Longest step that the output rule accepts: more is no step but another layer.
LARGEST_STEP = 0.3


#: Fewer than these never exceed chance within a few steps, and a step of length 0 would look like a fault.
ENOUGH_MEMBERS, ENOUGH_IMAGES = 16, 4


class EvolutionConfig(LoraOptimizerConfig):
    """Options that every evolution strategy of this plugin has."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("floor", "only shaping = 'antithetic' divides", lambda own, _: own.shaping != "antithetic"),
        Idle(
            "final_fraction",
            "schedule = 'constant' keeps the learning rate",
            lambda own, _: own.schedule == "constant",
            "set schedule, or leave it out",
        ),
    )

    population: int = Field(32, ge=2, description="members N per step; each generates all images of the step")
    sigma: float = Field(
        0.1, gt=0, description="standard deviation of the perturbation's entries, in sigma_scale units"
    )
    learning_rate: float = Field(
        0.03,
        gt=0,
        description="step size; with step_rule 'output' the relative change of every layer's output per step",
    )
    antithetic: bool = Field(True, description="evaluate every perturbation with both signs")
    shaping: Literal[
        "zscore",
        "zscore-biased",
        "prompt-centred",
        "prompt-zscore",
        "centred-rank",
        "antithetic",
        "antithetic-sign",
    ] = Field("antithetic", description="from scores to fitness; 'antithetic' divides pair differences by their rms")
    floor: float = Field(
        1e-3,
        gt=0,
        description="smallest divisor of shaping 'antithetic', in units of the reward: below it steps shrink",
    )
    step_rule: Literal["output", "upstream", "eggroll", "textbook"] = Field(
        "output",
        description="unit of learning_rate; default: 'upstream' for rates above 0.3, else 'output' (independent of"
        " sigma, population and LoRA rank), or the step of a"
        " published code before the solver: sigma mean(f E), sigma sqrt(N) mean(f E), mean(f E) / sigma",
    )
    gain: Literal["signal", "none"] | None = Field(
        None,
        description="'signal' shortens the step by how far the prompts' agreement about the members exceeds chance, to"
        " 0 for a random reward; default: 'signal' with step_rule 'output' and enough scores to tell (16 members, 4"
        " images of each), else 'none'",
    )
    train: list[Literal["A", "B"]] = Field(["A", "B"], min_length=1, description="LoRA factors that evolve")
    sigma_scale: Literal["relative", "absolute"] = Field(
        "relative",
        description="unit of sigma and of the step: 'relative' to what each layer has (B: rms of the layer's output"
        " over rms of A x; A: rms of its entries), or 'absolute' parameter values",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="course of the learning rate")
    final_fraction: float = Field(0.1, ge=0, le=1, description="learning rate at the end as a fraction of the start")
    solver: Literal["sgd", "adam", "adamw"] = Field("sgd", description="what steps along the pseudo-gradient")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the solver")
    max_step_norm: float | None = Field(None, gt=0, description="longest step (L2 over all trained parameters)")
    max_norm: float | None = Field(None, gt=0, description="largest L2 norm of the trained parameters")
    form: Literal["auto", "materialised", "factored", "merged", "sequential"] = Field(
        "auto", description="how members are evaluated; all give the same images, 'sequential' one member at a time"
    )

    @model_validator(mode="before")
    @classmethod
    def _earlier_unit(cls, table: Any) -> Any:
        """A rate that only the earlier default rule can mean keeps that rule: specs from before run as they did."""
        rate = table.get("learning_rate") if isinstance(table, dict) else None
        if isinstance(rate, int | float) and rate > LARGEST_STEP and "step_rule" not in table:
            return {**table, "step_rule": "upstream"}
        return table

    @model_validator(mode="after")
    def _consistent(self) -> EvolutionConfig:
        if self.shaping.startswith("antithetic") and not self.antithetic:
            raise ValueError(
                f"shaping = '{self.shaping}' compares the two signs of a perturbation: set antithetic = true"
            )
        if "B" not in self.train:
            raise ValueError("train must include 'B': it starts at zero, and A alone changes nothing then")
        if self.step_rule == "output" and self.learning_rate > LARGEST_STEP:
            raise ValueError(
                f"learning_rate = {self.learning_rate:g} would change every layer's output by"
                f" {self.learning_rate:.0%} in one step, and {LARGEST_STEP:.0%} is the most that is allowed; for the"
                " unit of HyperscaleES_T2I (and of specs from before this unit) set step_rule = 'upstream'"
            )
        return self

    def uses_signal(self, images: int) -> bool:
        """Whether steps are shortened by the share of signal in the scores.

        Args:
            images: that every member generates in a step.
        """
        enough = self.population >= ENOUGH_MEMBERS and images >= ENOUGH_IMAGES
        return self.gain == "signal" or (self.gain is None and self.step_rule == "output" and enough)

    def scale_free(self) -> bool:
        return self.shaping not in ("prompt-centred", "antithetic")  # whose floor is in units of the reward

    def plan(self, spec: Spec) -> Plan:
        images = spec.prompts.per_step * spec.prompts.images_per_prompt
        if self.uses_signal(images) and images < 2:
            raise UsageError(
                "gain = 'signal' compares what several images say about the same members: set prompts.per_step (or"
                " prompts.images_per_prompt) to 2 or more, or optimizer.gain = 'none'"
            )
        members = 1 if self.form == "sequential" else max(1, spec.run.micro_batch // images)
        forwards = -(-self.population // members) * -(-images // min(images, spec.run.micro_batch))
        notes = {"members": f"{self.population} x {images} images", "forwards per step": str(forwards)}
        if self.step_rule != "output":
            notes["step rule"] = self.step_rule
        if self.step_rule == "output" and self.gain is None and not self.uses_signal(images):
            notes["gain"] = (
                f"none: it takes {ENOUGH_MEMBERS} members and {ENOUGH_IMAGES} images of each to tell signal from chance"
            )
        kept = members * min(images, spec.run.micro_batch)
        return Plan(spec.run.steps, self.population * images, notes, kept_images=kept)


class OpenESConfig(EvolutionConfig):
    """``kind = "open-es"``: full-rank Gaussian noise (Salimans et al., arXiv 1703.03864)."""


class EggrollConfig(EvolutionConfig):
    """``kind = "eggroll"``: low-rank noise (arXiv 2511.16652)."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("train", "with parameters = 'weights' no LoRA factor evolves", lambda own, _: own.parameters == "weights"),
    )
    foreign_command_line: ClassVar[str] = "t2ialign_eggroll.hyperscale:spec_text"

    noise_rank: int = Field(1, ge=1, description="rank k of the perturbation of every matrix")
    sign_update: bool = Field(False, description="update with the signs of the noise factors (upstream's 'alteggroll')")
    parameters: Literal["lora", "weights"] = Field(
        "lora",
        description="what evolves: the LoRA factors, or the adapted layers' full weights, exported as the LoRA of the"
        " given rank that is nearest to the change",
    )

    def requires(self) -> Requirements:
        return {"backend": {"lora", "weights"} if self.parameters == "weights" else {"lora"}}

    @model_validator(mode="after")
    def _averages_a_lora(self) -> EggrollConfig:
        if self.ema and self.parameters == "weights":
            raise ValueError("ema averages a LoRA: set parameters = 'lora', or leave ema out")
        return self
