"""The spec's tables of this plugin; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from t2ialign import Config, OptimizerConfig, Plan, UsageError

if TYPE_CHECKING:
    from t2ialign.spec import Spec

ScaleKind = Literal["none", "bounded", "log-normal"]


class PpoEpdConfig(OptimizerConfig):
    """``kind = "ppo-epd"``. ``prompts.images_per_prompt`` is the size k of a group."""

    concentration: float = Field(
        20.0, gt=0, description="sum of the Dirichlet parameters at the start: higher explores less"
    )
    scale_dir: ScaleKind = Field(
        "none", description="also learn a factor of every probe's direction: within 1 +- scale_bound, or unbounded"
    )
    scale_time: ScaleKind = Field(
        "none", description="also learn a factor of the noise level that the network is told, at every probe"
    )
    scale_std: float = Field(0.05, gt=0, description="standard deviation of the scales at the start")
    scale_bound: float = Field(0.2, gt=0, lt=1, description="how far bounded scales may be from 1")
    shared_noise: bool = Field(True, description="the images of a group start from the same noise; only tables differ")
    whiten: Literal["batch", "prompt"] = Field(
        "batch", description="advantages get unit variance over the step's images, or within each group"
    )
    epochs: int = Field(1, ge=1, description="passes over the images of a step")
    minibatch: int = Field(4, ge=1, description="images per solver step")
    clip: float = Field(0.2, gt=0, lt=1, description="probability ratios count only within 1 +- clip")
    kl: float = Field(0.001, ge=0, description="weight of the KL divergence to the start, summed over intervals")
    entropy: float = Field(0.0, ge=0, description="weight of the policy's entropy, summed over intervals")
    learning_rate: float = Field(7e-5, gt=0, description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are shortened to this L2 norm")
    width: int = Field(128, ge=1, description="width of the policy network")
    blocks: int = Field(2, ge=0, description="residual blocks of the policy network")
    validate_every: int = Field(
        10, ge=0, description="steps between validations of the mean table; the best is delivered. 0: the last one"
    )
    validation_images: int = Field(
        16, ge=2, description="fixed images, one per training prompt, that choose among tables; never the evaluation's"
    )

    @model_validator(mode="after")
    def _bounded(self) -> PpoEpdConfig:
        if "bounded" in (self.scale_dir, self.scale_time) and self.scale_std >= self.scale_bound:
            raise ValueError("scale_std must be smaller than scale_bound")
        return self

    def plan(self, spec: Spec) -> Plan:
        options = spec.prompts
        if options.images_per_prompt < 2:
            raise UsageError("prompts.images_per_prompt must be 2 or more: images of one prompt are compared")
        images = options.per_step * options.images_per_prompt
        evaluations = spec.sampler_config.evaluations()
        notes = {
            "rollouts": f"{options.per_step} prompts x {options.images_per_prompt} tables a step",
            "network evaluations": f"{evaluations} an image, {images * evaluations:,} a step",
            "solver steps": f"{self.epochs * -(-images // self.minibatch)} a step",
        }
        return Plan(spec.run.steps, images, notes)


class AgreementConfig(Config):
    """``kind = "agreement"``."""

    sampler: dict[str, Any] = Field(
        default={"kind": "dpmpp-2m", "steps": 50}, description="the sampler of the reference, as in [sampler]"
    )

    @field_validator("sampler")
    @classmethod
    def _known(cls, table: dict[str, Any]) -> dict[str, Any]:
        from t2ialign.spec import parse_sampler

        parse_sampler(table, "reward.sampler")
        return table
