"""The spec's ``[optimizer]`` tables of this plugin; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from t2ialign import LoraOptimizerConfig, Plan, Requirements, UsageError

if TYPE_CHECKING:
    from t2ialign.spec.model import Spec


class OnlineConfig(LoraOptimizerConfig):
    """What all methods share. ``prompts.images_per_prompt`` is the size of a group."""

    learning_rate: float = Field(3e-4, gt=0, description="AdamW's")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are shortened to this L2 norm")
    updates: int = Field(1, ge=1, description="solver steps per step, each on a part of its images")
    advantage_std: Literal["batch", "prompt"] = Field(
        "batch", description="advantages are divided by the deviation of all rewards of a step, or of their prompt's"
    )
    advantage_clip: float = Field(5.0, gt=0, description="largest advantage")

    def requires(self) -> Requirements:
        needs = super().requires()
        needs.setdefault("backend", set()).update({"denoiser", "differentiable"})
        return needs

    def plan(self, spec: Spec) -> Plan:
        if spec.prompts.images_per_prompt < 2:
            raise UsageError("prompts.images_per_prompt must be 2 or more: images of one prompt are compared")
        images = spec.prompts.per_step * spec.prompts.images_per_prompt
        if self.updates > images:
            raise UsageError(f"optimizer.updates = {self.updates}: a step has {images} images to share among them")
        return Plan(spec.run.steps, images, {"solver steps": f"{self.updates} a step"})


class ForwardConfig(OnlineConfig):
    """What the forward-process methods share."""

    grid: int = Field(10, ge=1, description="steps of the model's time grid, from which learnt times are taken")
    times: int = Field(4, ge=1, description="times at which each image is learnt from, without repetition")
    timestep_fraction: float = Field(0.99, gt=0, le=1, description="part of the grid that is used, from the noisy end")
    kl: float = Field(1e-4, ge=0, description="weight of the squared distance to the base model's direction")

    @model_validator(mode="after")
    def _enough_times(self) -> ForwardConfig:
        usable = int(self.grid * self.timestep_fraction) - self.first
        if self.times > usable:
            raise ValueError(f"times must be at most {usable}, the times of grid and timestep_fraction")
        return self

    @property
    def first(self) -> int:
        """Noisiest times of the grid that are left out."""
        return 0


class NftConfig(ForwardConfig):
    """``kind = "nft"``."""

    beta: float = Field(1.0, gt=0, description="how far the implicit policies are from the old one; not the KL weight")
    advantage_mode: Literal["all", "positive-only", "negative-only", "one-only", "binary"] = Field(
        "all", description="which advantages count: all, those of one sign, 1 for good images and 0 else, or signs"
    )
    old_decay: Literal["none", "linear", "delayed"] = Field(
        "linear",
        description="how slowly the drawing policy follows: at once, min(updates / 1000, 1/2), or at once for 75"
        " updates and then min(0.0075 (updates - 75), 0.999)",
    )


class AwmConfig(ForwardConfig):
    """``kind = "awm"``."""

    timestep_fraction: float = Field(0.9, gt=0, le=1, description="part of the grid that is used, from the noisy end")
    weighting: Literal["uniform", "t", "t2", "huber", "ghuber"] = Field(
        "ghuber", description="the surrogate log-probability of a matching error"
    )
    power: float = Field(0.25, gt=0, le=1, description="of ghuber")
    clip: float = Field(1.0, gt=0, description="ratios count only within 1 +- clip; of no effect with updates = 1")
    advantage_max: float = Field(1.0, gt=0, description="what an advantage at the clip becomes")
    slow_kl: float = Field(1.0, ge=0, description="weight of the squared distance to the slowly following policy")
    slow_decay: float = Field(0.3, ge=0, lt=1, description="largest decay of that policy, reached linearly")

    @property
    def first(self) -> int:
        return 1


class FlowGrpoConfig(OnlineConfig):
    """``kind = "flow-grpo"``."""

    clip: float = Field(1e-4, gt=0, description="ratios count only within 1 +- clip; they are of mean log-densities")
    timestep_fraction: float = Field(0.99, gt=0, le=1, description="part of the steps that is learnt from, noisy first")
    kl: float = Field(0.0, ge=0, description="weight of the KL divergence to the base model")
    kl_form: Literal["published", "exact"] = Field(
        "published",
        description="published: the exact divergence times the length of the step, as recipes weigh it",
    )

    def requires(self) -> Requirements:
        needs = super().requires()
        needs["sampler"] = {"stochastic"}
        return needs
