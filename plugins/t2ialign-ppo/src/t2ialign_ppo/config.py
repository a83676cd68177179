"""The spec's tables of this plugin; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from t2ialign import Config, OptimizerConfig, Plan, UsageError
from t2ialign.config import PROMPT_FILE
from t2ialign.idle import Idle
from t2ialign.spec import prompts

if TYPE_CHECKING:
    from t2ialign.spec.model import Spec

ScaleKind = Literal["none", "bounded", "log-normal"]
#: Images of a validation on training prompts.
USUAL_VALIDATION = 16


class PpoEpdConfig(OptimizerConfig):
    """``kind = "ppo-epd"``. ``prompts.images_per_prompt`` is the size k of a group."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "scale_std scale_bound",
            "scale_dir and scale_time = 'none' learn no scale",
            lambda own, _: own.scale_dir == own.scale_time == "none",
            "set scale_dir or scale_time, or leave it out",
        ),
        Idle(
            "scale_bound",
            "no scale is 'bounded'",
            lambda own, _: (
                "log-normal" in (own.scale_dir, own.scale_time) and "bounded" not in (own.scale_dir, own.scale_time)
            ),
        ),
        Idle(
            "minibatch",
            "a step has fewer images",
            lambda own, spec: own.minibatch > spec.prompts.per_step * spec.prompts.images_per_prompt,
            "lower it, or draw more",
        ),
        Idle(
            "clip",
            "one pass in one minibatch: ratios are 1",
            lambda own, spec: (
                own.epochs == 1 and own.minibatch >= spec.prompts.per_step * spec.prompts.images_per_prompt
            ),
            "more epochs, or a smaller minibatch",
        ),
        Idle(
            "validation_prompts validation_images",
            "validate_every = 0 validates nothing",
            lambda own, _: own.validate_every == 0,
            "set validate_every, or leave it out",
        ),
        Idle(
            "validate_every",
            "the run has fewer steps, and validates its last table alone",
            lambda own, spec: own.validate_every > spec.run.steps,
            "lower it",
        ),
        Idle(
            "validation_images",
            "each has another prompt, and there are fewer",
            lambda own, spec: own.validate_every > 0 and own.validation_images > len(own.validation_texts(spec)),
            "more prompts",
        ),
    )

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
    validation_prompts: Annotated[str | None, PROMPT_FILE] = Field(
        None, description="prompt file of the validation; default: some training prompts, with noise of their own"
    )
    validation_images: int | None = Field(
        None,
        ge=2,
        description="fixed images, each of another prompt, that choose among tables; never the evaluation's."
        " Default: 16, or one per prompt of validation_prompts",
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
        validated = self.validation_size(self.validation_texts(spec))
        if self.validate_every and validated < 2:
            raise UsageError(
                "validation compares tables on 2 or more prompts, and the file has one: give it more, or set"
                " validate_every = 0 to deliver the last table"
            )
        images = options.per_step * options.images_per_prompt
        evaluations = spec.sampler_config.evaluations()
        notes = {
            "rollouts": f"{options.per_step} prompts x {options.images_per_prompt} tables a step",
            "network evaluations": f"{evaluations} an image, {images * evaluations:,} a step",
            "solver steps": f"{self.epochs * -(-images // self.minibatch)} a step",
        }
        if self.validate_every:
            notes["validation"] = f"{validated} images every {self.validate_every} steps"
        return Plan(spec.run.steps, images, notes)

    def further_prompts(self, spec: Spec) -> list[str]:
        return self.validation_texts(spec)

    def validation_texts(self, spec: Spec) -> list[str]:
        """The prompts that validation images may have, each once."""
        own = self.validation_prompts
        return list(dict.fromkeys(spec.training_prompts() if own is None else prompts.read(spec.file(own))))

    def validation_size(self, texts: Sequence[str]) -> int:
        """How many of them it uses."""
        usual = USUAL_VALIDATION if self.validation_prompts is None else len(texts)
        return min(self.validation_images or usual, len(texts))


class AgreementConfig(Config):
    """``kind = "agreement"``."""

    sampler: dict[str, Any] = Field(
        default={"kind": "dpmpp-2m", "steps": 50},
        validate_default=False,  # at registration, when defaults are checked, not all samplers are registered yet
        description="the sampler of the reference, as in [sampler]",
    )

    @field_validator("sampler")
    @classmethod
    def _known(cls, table: dict[str, Any]) -> dict[str, Any]:
        from t2ialign.spec.parse import parse_sampler

        parse_sampler(table, "reward.sampler")
        return table
