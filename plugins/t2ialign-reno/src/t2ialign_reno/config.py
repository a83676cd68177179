"""The spec's tables of ``reno`` and ``image-select``; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from t2ialign import OptimizerConfig, Plan, Requirements, UsageError, plugins
from t2ialign.bench.layouts import LAYOUTS
from t2ialign.idle import Idle

if TYPE_CHECKING:
    from t2ialign.spec.model import Chosen, Spec


class ImageSearchConfig(OptimizerConfig):
    """What all searches for images share. One iteration gives every running search one more image."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "patience",
            "a search has no more iterations",
            lambda own, spec: own.patience >= own.iterations(spec),
            "lower it, or leave it out",
        ),
    )

    layout: Literal["geneval", "t2i-compbench", "parti-prompts"] | None = Field(
        None, description="also export the images as this benchmark's scorer reads them"
    )
    save_iterations: bool = Field(False, description="write the image of every iteration of every search")
    patience: int | None = Field(
        None, ge=1, description="stop a search that has not improved for so many iterations; its place is reused"
    )

    @property
    def searches_per_image(self) -> int:
        return 1

    def iterations(self, spec: Spec) -> int:
        """Of every search."""
        return spec.run.steps

    def evaluations(self, spec: Spec) -> int | None:
        """Network evaluations of one iteration of one search; None: the sampler's."""
        return None

    def plan(self, spec: Spec) -> Plan:
        """One step is one iteration of all the searches that run at the same time."""
        spec.check_images_are_scored_alone()
        texts = spec.training_prompts()
        if self.layout:
            LAYOUTS[self.layout].check(texts, spec.prompts.images_per_prompt, spec.prompt_file())
        images = len(texts) * spec.prompts.images_per_prompt
        searches, slots = images * self.searches_per_image, self.slots(spec)
        rounds, iterations = -(-searches // slots), self.iterations(spec)
        notes = {
            "images delivered": f"{images:,} ({len(texts):,} prompts x {spec.prompts.images_per_prompt})",
            "searches": f"{searches:,} of {iterations} iterations, {min(slots, searches)} at a time",
        }
        # An image that the run does not deliver would be searched for by an evaluation along the run.
        delivered = spec.evaluation.prompts in (None, spec.prompts.file)
        cost = 1 if delivered else iterations * self.searches_per_image
        at_once = min(slots, searches)
        return Plan(rounds * iterations, at_once, notes, self.evaluations(spec), image_cost=cost)

    def slots(self, spec: Spec) -> int:
        """Searches at the same time: those of ``prompts.per_step`` prompts."""
        return spec.prompts.per_step * spec.prompts.images_per_prompt * self.searches_per_image


class NoiseSearchConfig(ImageSearchConfig):
    """What searches for noise share. ``run.steps`` counts the iterations (generated images) of every search."""

    second_sampler: dict[str, Any] | None = Field(
        None, description="a sampler table ({ kind = 'scm', steps = 4 }) that renders the found noise once more"
    )

    @field_validator("second_sampler")
    @classmethod
    def _known_sampler(cls, table: dict[str, Any] | None) -> dict[str, Any] | None:
        if table is not None:
            chosen_sampler(table)
        return table

    def requires(self) -> Requirements:
        return chosen_sampler(self.second_sampler).requires() if self.second_sampler else {}


class ImageSelectConfig(NoiseSearchConfig):
    """``kind = "image-select"``: the best of ``run.steps`` noises."""

    def scale_free(self) -> bool:
        return True


class RenoConfig(NoiseSearchConfig):
    """``kind = "reno"`` (arXiv 2406.04312); the defaults are the published settings."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "max_gradient_norm regularisation learning_rate momentum solver scale_learning_rate",
            "one iteration is the first image alone: no step is made",
            lambda own, spec: spec.run.steps == 1,
            "more run.steps",
        ),
    )

    solver: Literal["nesterov", "sgd", "adam"] = Field(
        "nesterov", description="gradient ascent with Nesterov or plain momentum, or Adam (with eps = 0.01)"
    )
    learning_rate: float = Field(5.0, gt=0, description="step size for latents of 16,384 numbers")
    scale_learning_rate: bool = Field(
        True, description="multiply the learning rate by sqrt(latent size / 16384); false takes it as it is"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum, or Adam's first decay")
    max_gradient_norm: float = Field(0.1, gt=0, description="clip of each sample's gradient (L2)")
    regularisation: float = Field(0.01, ge=0, description="weight of the penalty that keeps |z| as a Gaussian has it")
    restarts: int = Field(1, ge=1, description="searches per image, each from its own noise; the best is delivered")

    @property
    def searches_per_image(self) -> int:
        return self.restarts


def chosen_sampler(table: dict[str, Any]) -> Chosen:
    """The sampler that a nested table names.

    Raises:
        ValueError: unknown kind or wrong options.
    """
    from t2ialign.spec.model import Chosen

    try:
        declaration = plugins.registry().find("sampler", str(table.get("kind")))
    except UsageError as error:
        raise ValueError(str(error)) from error
    options = {name: value for name, value in table.items() if name != "kind"}
    return Chosen(declaration, declaration.config.model_validate(options))
