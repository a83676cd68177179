"""The spec's tables of this package; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from t2ialign import Plan, Requirements, UsageError
from t2ialign.idle import Idle
from t2ialign_reno.config import ImageSearchConfig, NoiseSearchConfig

if TYPE_CHECKING:
    from t2ialign.spec.model import Spec

#: Where generations are, as shares of the sampler's steps: the published schedule of 50 steps is 0, 20, 30, 40.
GENERATIONS = (0.0, 0.4, 0.6, 0.8)


class ZeroOrderConfig(NoiseSearchConfig):
    """``kind = "zero-order"`` (arXiv 2501.09732). ``run.steps`` counts the images of every search."""

    neighbours: int = Field(4, ge=1, description="noises around the pivot that a round looks at")
    cosine: float = Field(
        0.95, gt=-1, lt=1, description="between the pivot and its neighbours: the larger, the smaller is a step"
    )
    pivot_rule: Literal["keep", "paper", "upstream"] = Field(
        "keep",
        description="where no neighbour is better: keep the pivot, go to the best of them all the same, or start from"
        " new noise. The best image of all is delivered either way",
    )

    def scale_free(self) -> bool:
        return True


class TrajectorySearchConfig(ImageSearchConfig):
    """What searches along trajectories share: a pass is a whole search, and ``run.steps`` is not used."""

    #: Of the table [run]: its searches have ``passes``.
    uses_run_steps: ClassVar[bool] = False

    passes: int = Field(1, ge=1, description="whole searches per image, one after the other; the best is delivered")

    def iterations(self, spec: Spec) -> int:
        return self.passes

    def cost(self, spec: Spec) -> int:
        """Network evaluations of one pass."""
        raise NotImplementedError

    def evaluations(self, spec: Spec) -> int | None:
        return self.cost(spec)

    def plan(self, spec: Spec) -> Plan:
        plan = super().plan(spec)
        plan.notes["each image"] = f"{self.cost(spec) * self.passes:,} network evaluations"
        return plan


class FkConfig(TrajectorySearchConfig):
    """``kind = "fk-steering"`` (arXiv 2501.06848)."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "potential resampling ess_threshold adaptive resample_from resample_until resample_every resample_last",
            "a single particle has none to be resampled with",
            lambda own, _: own.particles == 1,
            "more particles",
        ),
        Idle("lmbda", "a single particle is not weighed", lambda own, _: own.particles == 1, "more particles"),
        Idle("potential", "lmbda = 0 weighs all particles alike", lambda own, _: own.lmbda == 0, "set lmbda above 0"),
        Idle(
            "ess_threshold",
            "adaptive = false resamples at every look",
            lambda own, _: not (own.adaptive or own.resample_last),
        ),
        Idle(
            "resample_from resample_until resample_every",
            "no step of the sampler is looked at",
            lambda own, spec: own.particles > 1 and not (own.resample_last or own.looks(spec)),
            "bring them inside the sampler's steps",
        ),
    )

    particles: int = Field(4, ge=1, description="trajectories of every image, resampled among each other")
    potential: Literal["difference", "max", "sum", "reward"] = Field(
        "difference",
        description="what particles are weighed by: the gain since the last look, or the best, the sum, the"
        " last of the rewards",
    )
    lmbda: float = Field(
        10.0, ge=0, description="target p(x) exp(lmbda r(x)), with r in the run's reward units; 0 is no steering"
    )
    resampling: Literal["systematic", "stratified", "multinomial"] = Field(
        "systematic", description="how particles are drawn; systematic has the least variance"
    )
    ess_threshold: float = Field(
        0.5, gt=0, le=1, description="resample where the effective number of particles is below this share of them"
    )
    adaptive: bool = Field(True, description="false resamples at every look, whatever the effective number is")
    resample_from: int | None = Field(
        None, ge=0, description="first step after which to look; default: a fifth of them"
    )
    resample_until: int | None = Field(None, ge=0, description="last one; default: four fifths of them")
    resample_every: int | None = Field(None, ge=1, description="steps between looks; default: a fifth of them")
    resample_last: bool = Field(
        False,
        description="look after the last step, too: the images are then drawn by weight, and the best may be lost",
    )

    def schedule(self, steps: int) -> tuple[int, int, int]:
        """First, last, every."""
        fifth = max(1, round(steps / 5))
        first = fifth if self.resample_from is None else self.resample_from
        last = steps - fifth if self.resample_until is None else self.resample_until
        return first, last, self.resample_every or fifth

    def looks(self, spec: Spec) -> bool:
        """Whether particles are weighed at any step before the last."""
        steps = spec.sampler_config.evaluations()
        first, last, every = self.schedule(steps)
        return any(first <= step <= last and (step - first) % every == 0 for step in range(steps - 1))

    def cost(self, spec: Spec) -> int:
        return self.particles * spec.sampler_config.evaluations()

    def requires(self) -> Requirements:
        return {"backend": {"denoiser"}, "sampler": {"stochastic"}}


class EvoConfig(TrajectorySearchConfig):
    """``kind = "evo-search"`` (arXiv 2505.17618); the default sizes are those published for FLUX."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "reentry",
            "all generations are at step 0, before anything is drawn",
            lambda own, spec: own.reentry == "input" and own.schedule(own.steps(spec))[-1] == 0,
            "a stochastic sampler, later steps in evolution_schedule, or leave it out",
        ),
        Idle(
            "mutation_rate",
            "no generation is at step 0, where it is the share of new noise",
            lambda own, spec: own.reentry != "post" and own.schedule(own.steps(spec))[0] > 0,
        ),
    )

    evolution_schedule: list[int] | None = Field(
        None,
        min_length=1,
        description="sampler steps before which a generation is chosen; default: 0, 40, 60, 80 % of a stochastic"
        " sampler's steps. Any other sampler has them all at step 0",
    )
    population_size_schedule: list[int] = Field(
        [14, 7, 7, 7, 10], min_length=2, description="members of every generation, and of the last population"
    )
    elite_size: int = Field(3, ge=0, description="best members that go on as they are")
    mutation_rate: float = Field(0.2, gt=0, lt=1, description="share beta of new noise in a child of initial noise")
    tournament_frac: float = Field(
        0.9, gt=0, le=1, description="share of all members so far among which a parent is the best"
    )
    reentry: Literal["renoise", "input", "post"] = Field(
        "renoise",
        description="how members come back into a step: at its exact noise level, with the step's noise on top, or as"
        " the published code has it",
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> EvoConfig:
        if bad := [size for size in self.population_size_schedule if size < 1]:
            raise ValueError(f"population_size_schedule: {bad[0]} is no size; must be 1 or more")
        if bad := [size for size in self.population_size_schedule[1:] if size <= self.elite_size]:
            raise ValueError(
                f"population_size_schedule: {bad[0]} leaves no child beside elite_size = {self.elite_size}"
            )
        schedule = self.evolution_schedule
        if schedule is not None and len(schedule) + 1 != len(self.population_size_schedule):
            raise ValueError(
                f"population_size_schedule: has {len(self.population_size_schedule)} sizes; must be one more than"
                f" evolution_schedule has steps, {len(schedule) + 1}"
            )
        if schedule is not None and (schedule != sorted(schedule) or schedule[0] < 0):
            raise ValueError("evolution_schedule: must be ascending steps from 0 on")
        return self

    def scale_free(self) -> bool:
        return True

    def schedule(self, steps: int) -> list[int]:
        """The steps of the generations, where members can be changed between ``steps``.

        Raises:
            UsageError: there are no such steps.
        """
        generations = len(self.population_size_schedule) - 1
        if self.evolution_schedule is None:
            if steps == 1:
                return [0] * generations
            shares = [GENERATIONS[min(k, len(GENERATIONS) - 1)] for k in range(generations)]
            return [int(share * steps + 0.5) for share in shares]
        if self.evolution_schedule[-1] >= steps:
            says = (
                f"the sampler has {steps} steps" if steps > 1 else "a sampler without noise is searched at step 0 alone"
            )
            raise UsageError(f"evolution_schedule: there is no step {self.evolution_schedule[-1]}: {says}")
        return self.evolution_schedule

    def steps(self, spec: Spec) -> int:
        """Steps between which members can be changed: those of a stochastic sampler, else only the whole."""
        stochastic = spec.sampler is not None and "stochastic" in spec.sampler.provides()
        return spec.sampler_config.evaluations() if stochastic else 1

    def cost(self, spec: Spec) -> int:
        """n_0 s_0 + sum n_k (T - s_k) + sum n_{k+1} (s_{k+1} - s_k); elites are drawn again only with new noise."""
        steps = self.steps(spec)
        schedule = self.schedule(steps)
        again = 0 if steps > 1 else self.elite_size
        sizes = [size - (again if k else 0) for k, size in enumerate(self.population_size_schedule)]
        ends = [*schedule[1:], steps]
        rolls = sum(n * (steps - s) for n, s in zip(sizes, schedule, strict=False))
        main = sum(n * (end - s) for n, s, end in zip(sizes[1:], schedule, ends, strict=True))
        return (sizes[0] * schedule[0] + rolls + main) * spec.sampler_config.evaluations() // steps

    def requires(self) -> Requirements:
        return {"backend": {"denoiser"}}
