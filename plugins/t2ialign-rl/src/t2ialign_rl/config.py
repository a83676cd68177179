"""The spec's ``[optimizer]`` tables of this plugin; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from t2ialign import LoraOptimizerConfig, Plan, Requirements, UsageError
from t2ialign.idle import Idle

if TYPE_CHECKING:
    from t2ialign.spec.model import Spec


class OnlineConfig(LoraOptimizerConfig):
    """What all methods share."""

    learning_rate: float = Field(3e-4, gt=0, description="AdamW's")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are shortened to this L2 norm")
    updates: int = Field(1, ge=1, description="solver steps per step, each on a part of its images")

    #: What methods need of a backend.
    needed: ClassVar[set[str]] = {"denoiser", "differentiable"}

    def requires(self) -> Requirements:
        needs = super().requires()
        needs.setdefault("backend", set()).update(self.needed)
        return needs

    def plan(self, spec: Spec) -> Plan:
        images = spec.prompts.per_step * spec.prompts.images_per_prompt
        if self.updates > images:
            raise UsageError(f"optimizer.updates = {self.updates}: a step has {images} images to share among them")
        return Plan(spec.run.steps, images, {"solver steps": f"{self.updates} a step"})


class GroupConfig(OnlineConfig):
    """What methods share that compare the images of a prompt: ``prompts.images_per_prompt`` is the size of a group."""

    def plan(self, spec: Spec) -> Plan:
        if spec.prompts.images_per_prompt < 2:
            raise UsageError("prompts.images_per_prompt must be 2 or more: images of one prompt are compared")
        return super().plan(spec)


class NoisingConfig(GroupConfig):
    """What methods share that learn from fresh noisings of images, at all noise levels."""

    few_step: Literal["refuse", "warn"] = Field(
        "refuse",
        description="what to do with a model that was distilled to a few steps: it never learnt to denoise at all noise"
        " levels, and its images blur when it does",
    )

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "few_step",
            "the model was not distilled to a few steps, as far as names tell",
            lambda own, spec: "few-step" not in spec.backend.provides(),
        ),
    )

    def distilled(self, spec: Spec) -> str:
        """What is wrong with the model for such a method; empty where nothing is."""
        if "few-step" not in spec.backend.provides():
            return ""
        return (
            f"'{spec.optimizer.kind}' asks for denoising at all noise levels, and backend '{spec.backend.kind}' with"
            f" '{spec.backend_config.checkpoint}' was distilled to a few steps: its images blur"
        )

    def plan(self, spec: Spec) -> Plan:
        if self.few_step == "refuse" and (trouble := self.distilled(spec)):
            raise UsageError(
                f"{trouble}. 'flow-grpo', 'draft' and 'eggroll' learn from the model's own steps; or set"
                " optimizer.few_step = 'warn'"
            )
        return super().plan(spec)


class AdvantageConfig(GroupConfig):
    """What methods share that weigh images by advantages."""

    advantage_std: Literal["batch", "prompt"] = Field(
        "batch", description="advantages are divided by the deviation of all rewards of a step, or of their prompt's"
    )
    advantage_clip: float = Field(5.0, gt=0, description="largest advantage")


class ForwardConfig(NoisingConfig, AdvantageConfig):
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

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("clip ratio", "with updates = 1 all ratios are 1", lambda own, _: own.updates == 1, "more updates"),
        Idle("power", "only weighting = 'ghuber' has a power", lambda own, _: own.weighting != "ghuber"),
        Idle("kl_form", "kl = 0 weighs no distance", lambda own, _: own.kl == 0),
        Idle("slow_decay slow_kl_form", "slow_kl = 0 compares with no slow policy", lambda own, _: own.slow_kl == 0),
    )

    timestep_fraction: float = Field(0.9, gt=0, le=1, description="part of the grid that is used, from the noisy end")
    weighting: Literal["uniform", "t", "t2", "huber", "ghuber"] = Field(
        "ghuber", description="the surrogate log-probability of a matching error"
    )
    power: float = Field(0.25, gt=0, le=1, description="of ghuber")
    clip: float = Field(1.0, gt=0, description="ratios count only within 1 +- clip; of no effect with updates = 1")
    ratio: Literal["time", "image"] = Field(
        "time", description="a ratio for every noising of an image, or one from the means over its noisings"
    )
    advantage_max: float = Field(1.0, gt=0, description="what an advantage at the clip becomes")
    kl_form: Literal["uniform", "elbo"] = Field(
        "uniform", description="elbo: distances over 2 std^2 of the noise level, so that clean times weigh more"
    )
    slow_kl: float = Field(1.0, ge=0, description="weight of the squared distance to the slowly following policy")
    slow_kl_form: Literal["uniform", "elbo"] = Field("uniform", description="the same for slow_kl")
    slow_decay: float = Field(0.3, ge=0, lt=1, description="largest decay of that policy, reached linearly")

    @property
    def first(self) -> int:
        return 1


class FlowGrpoConfig(AdvantageConfig):
    """``kind = "flow-grpo"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("clip", "with updates = 1 all ratios are 1", lambda own, _: own.updates == 1, "more updates"),
        Idle(
            "window_course window_first window_every window_stride window_decay window_decay_rate window_decay_from",
            "without window all steps are learnt from",
            lambda own, _: own.window is None,
            "set window, or leave it out",
        ),
        Idle(
            "window_every window_stride window_decay window_decay_rate window_decay_from",
            "only window_course = 'sliding' moves on",
            lambda own, _: own.window is not None and own.window_course != "sliding",
        ),
        Idle(
            "window_decay_rate window_decay_from",
            "only window_decay = 'exponential' has them",
            lambda own, _: own.window is not None and own.window_decay != "exponential",
        ),
        Idle(
            "window",
            "the sampler has no more steps",
            lambda own, spec: own.window_first == 0 and own.window >= spec.sampler_config.evaluations(),
            "lower it, or leave it out",
        ),
        Idle("kl_form", "kl = 0 weighs no divergence", lambda own, _: own.kl == 0, "set kl, or leave it out"),
    )

    clip: float = Field(1e-4, gt=0, description="ratios count only within 1 +- clip; they are of mean log-densities")
    log_prob: Literal["density", "distance", "guard"] = Field(
        "density",
        description="what ratios compare: log-densities, squared distances to the mean alone, as published with CPS, or"
        " GRPO-Guard's centred ones, for one more forward of every row",
    )
    window: int | None = Field(
        None,
        ge=1,
        description="steps of the sampler that have noise and are learnt from; the others follow the ODE (MixGRPO,"
        " Flow-GRPO-Fast). Default: all",
    )
    window_course: Literal["fixed", "sliding", "random"] = Field(
        "sliding", description="where the window is: at its first place, moving on, or drawn for every step of the run"
    )
    window_first: int = Field(0, ge=0, description="first step of the sampler that a window may hold")
    window_every: int = Field(25, ge=1, description="steps of the run after which a sliding window moves on")
    window_stride: int = Field(1, ge=1, description="how far")
    window_decay: Literal["none", "linear", "exponential"] = Field(
        "none",
        description="how window_every shortens along the sampler's steps: not at all, evenly to 1, or by the factor"
        " exp(-window_decay_rate) a step behind window_decay_from",
    )
    window_decay_rate: float = Field(0.1, gt=0, description="of the exponential decay, for each step of the sampler")
    window_decay_from: int = Field(13, ge=0, description="step of the sampler behind which it begins")
    same_noise: bool = Field(
        False,
        description="images of a prompt start from the same noise; with a window they are drawn once up to there, and"
        " differ by its noise alone: they tell what it did",
    )
    timestep_fraction: float = Field(0.99, gt=0, le=1, description="part of the steps that is learnt from, noisy first")
    kl: float = Field(0.0, ge=0, description="weight of the KL divergence to the base model")
    kl_form: Literal["published", "exact", "velocity"] = Field(
        "published",
        description="published: the exact divergence times the length of the step, as recipes weigh it; velocity: the"
        " squared distance of the network's directions, whatever the noise of the step",
    )

    def requires(self) -> Requirements:
        needs = super().requires()
        needs["sampler"] = {"stochastic"}
        return needs


class GrpoArConfig(AdvantageConfig):
    """``kind = "grpo-ar"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("clip", "with updates = 1 all ratios are 1", lambda own, _: own.updates == 1, "more updates"),
    )

    needed: ClassVar[set[str]] = {"tokens"}

    learning_rate: float = Field(1e-5, gt=0, description="AdamW's")
    advantage_std: Literal["batch", "prompt"] = Field(
        "prompt", description="advantages are divided by the deviation of all rewards of a step, or of their prompt's"
    )
    clip: float = Field(0.2, gt=0, description="ratios of tokens count only within 1 +- clip")
    kl: float = Field(0.1, ge=0, description="weight of the divergence from the base model")
    alpha: float = Field(0.7, ge=0, description="tokens of a scale of n tokens weigh n^-alpha; 0: all tokens alike")
    scales: int | None = Field(None, ge=1, description="learn from the tokens of the first scales alone")
    policy: Literal["plain", "guided", "surrogate"] = Field(
        "plain",
        description="what draws and is learnt: the plain distribution; the guided one, at two rows for each image; or"
        " images are drawn as the backend's options say, filters too, and the plain distribution stands for that",
    )
    max_kl: float | None = Field(
        5.0,
        gt=0,
        description="an update is left out where the divergence of whole images from the base is larger than this",
    )


class OnlineDpoConfig(NoisingConfig):
    """``kind = "online-dpo"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "reference_every",
            "the run makes fewer solver steps: the base model stays the reference",
            lambda own, spec: own.reference_every > own.updates * spec.run.steps,
            "lower it",
        ),
    )

    beta: float = Field(
        100.0,
        gt=0,
        description="strength of the implicit reward of a mean squared error: about 100 for velocities, and 5000 for"
        " noise predictions such as Stable Diffusion's",
    )
    grid: int = Field(1000, ge=1, description="steps of the model's time grid, from which learnt times are taken")
    times: int = Field(4, ge=1, description="times at which each pair is learnt from")
    time_draw: Literal["logit-normal", "uniform"] = Field(
        "logit-normal", description="how positions on the grid are drawn"
    )
    reference_every: int | None = Field(
        None, ge=1, description="solver steps after which the policy becomes the reference; default: never"
    )

    def scale_free(self) -> bool:
        return True


class DirectConfig(OnlineConfig):
    """What methods share that follow the reward's gradient."""

    target: float | None = Field(
        None, description="images are not pushed beyond this reward: max(0, target - r) is minimised; default: -r"
    )

    def requires(self) -> Requirements:
        needs = super().requires()
        needs["reward"] = {"differentiable"}
        return needs

    def plan(self, spec: Spec) -> Plan:
        for reward in spec.rewards:
            if reward.mix.weight and reward.mix.normalise not in ("none", "range"):
                raise UsageError(
                    f"every image has a gradient of its own, but normalise = '{reward.mix.normalise}' of reward"
                    f" '{reward.name}' compares images; use 'none' or 'range'"
                )
        return super().plan(spec)


class DraftConfig(DirectConfig):
    """``kind = "draft"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "last_draw",
            "last = 1 leaves nothing to draw",
            lambda own, _: own.last == 1 and own.last_draw == "uniform",
            "raise last",
        ),
        Idle("last", "last_draw = 'each' draws for all calls", lambda own, _: own.last_draw == "each"),
        Idle(
            "last",
            "the sampler calls the network less often",
            lambda own, spec: own.last > spec.sampler_config.evaluations(),
            "lower it",
        ),
        Idle(
            "refl",
            "the sampler calls the network less often",
            lambda own, spec: own.refl > spec.sampler_config.evaluations(),
            "lower it",
        ),
    )

    last: int = Field(1, ge=1, description="network calls at the end that keep their gradient: K")
    last_draw: Literal["fixed", "uniform", "each"] = Field(
        "fixed",
        description="K itself; a number from 1 to K, drawn for every step (AlignProp); or every call keeps its gradient"
        " by a draw of its own, the likelier the later it is (TRL)",
    )
    refl: int | None = Field(
        None, ge=1, description="end at one of so many last calls, and take the x0 predicted there for the image (ReFL)"
    )
    noisings: int = Field(
        0, ge=0, description="learn from so many fresh noisings of the image to its last step instead (DRaFT-LV)"
    )
    kl: float = Field(0.0, ge=0, description="weight of the squared distance to the base model's direction")

    def calls_kept(self, evaluations: int) -> int | None:
        """With ``last_draw = "each"`` all of them in the worst case."""
        if self.noisings:
            return None
        return evaluations if self.last_draw == "each" else min(self.last, evaluations)

    @model_validator(mode="after")
    def _one_form(self) -> DraftConfig:
        if self.noisings and (self.refl is not None or self.last > 1 or self.last_draw == "each"):
            raise ValueError("noisings learns from one step of its own: leave refl, last and last_draw out")
        return self

    def requires(self) -> Requirements:
        needs = super().requires()
        needs["sampler"] = {"differentiable"}
        return needs


class SrpoConfig(DirectConfig):
    """``kind = "srpo"``."""

    positive: list[str] = Field(
        ["Natural-lighting", "Detail", "Detailed", "Real"],
        min_length=1,
        description="phrases to come closer to, one a step; each stands before the prompt",
    )
    negative: list[str] = Field(
        ["Concept art", "Painting", "Anime", "Flat", "Oil"], min_length=1, description="phrases to leave"
    )
    grid: int = Field(50, ge=2, description="steps of the model's time grid")
    between: tuple[int, int] = Field((5, 25), description="steps of that grid between which noise levels lie")
    levels: int = Field(1000, ge=20, description="noise levels there")
    image_share: float = Field(0.9, ge=0, lt=1, description="a step is at most 1 - image_share of the levels long")
    discount: tuple[float, float] = Field(
        (0.1, 0.25), description="extra weight of the wanted phrase in steps that denoise, from clean to noisy"
    )
    discount_invert: tuple[float, float] = Field((0.3, 0.01), description="the same in steps that add noise")

    @model_validator(mode="after")
    def _inside_the_grid(self) -> SrpoConfig:
        first, last = self.between
        if not 0 < first < last < self.grid:
            raise ValueError(f"between must be two ascending steps from 1 to {self.grid - 1}, the inner ones of grid")
        return self
