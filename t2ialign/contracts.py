"""The contracts between the core and its plugins. Importing this module does not import torch.

Shapes: images are float tensors (B, 3, H, W) in [0, 1]; latents are (B, *latent_shape) float32;
rewards are (B,), higher is better; conditionings are indexed by image.

Capability words
    backend    diffusion | autoregressive, denoiser (has one), lora (has trainable parameters),
               differentiable (images have gradients with respect to latents and LoRA),
               weights (the trained network's own weights can be read and replaced; options may take this away),
               one-step | multi-step (what its checkpoint was trained for; may be both)
    sampler    one-step | multi-step, stochastic (gives transitions), table (driven by a solver table), differentiable
    reward     differentiable, per-prompt (compares the images of one prompt),
               reference (compares with the image that another sampler draws from the same noise)
    optimizer  references (can optimise such a reward)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from t2ialign.config import BackendConfig, OptimizerConfig, SamplerConfig
from t2ialign.config import Config as BaseConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from t2ialign.conditioning import Conditioning
    from t2ialign.paths import DiffusionPath
    from t2ialign.problem import Problem


class Part:
    """Base of everything that a plugin registers: its validated options and the device it works on."""

    Config: ClassVar[type[BaseConfig]] = BaseConfig

    def __init__(self, config: BaseConfig, device: torch.device | str = "cpu") -> None:
        import torch

        self.config: Any = config
        self.device = torch.device(device)


class Reward(Part, ABC):
    """A score of images, higher is better.

    A score must not depend on the other images of the batch, unless the reward is ``per_prompt``. Models load in
    ``__init__`` or on first use.
    """

    #: True when ``score`` back-propagates to the images; never detach or wrap in no_grad then.
    differentiable: ClassVar[bool] = False
    #: True when a score compares an image with the others of its prompt (diversity): ``score`` then sees all images of
    #: its prompts at once, and the reward is a diagnostic that cannot be optimised.
    per_prompt: ClassVar[bool] = False

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images against their prompts.

        Args:
            images: float (B, 3, H, W) in [0, 1] on any device.
            prompts: B strings.

        Returns:
            Scores (B,), float32.
        """


class ReferenceReward(Reward):
    """A score against a reference image: the base model's, drawn from the same noise by another sampler.

    Its options have ``sampler``, that sampler's table, and it is registered with provides={"reference"}. Every
    evaluation measures it; only optimizers that provide "references" can optimise it.
    """

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise TypeError(f"{type(self).__name__} compares with reference images; only runs can score it")

    @abstractmethod
    def agree(self, images: Tensor, references: Tensor) -> Tensor:
        """Scores (B,), float32, of images (B, 3, H, W) in [0, 1] against their references of the same shape."""


class Prediction(NamedTuple):
    """What a denoiser says at (x_t, t): x_t = alpha(t) x0 + sigma(t) eps. Both float32 (B, *latent_shape)."""

    x0: Tensor
    eps: Tensor


class Denoiser(ABC):
    """A diffusion model bound to B rows of conditioning, as solvers see it: (x_t, t) -> (x0, eps).

    Whatever the network predicts (epsilon, v, flow velocity, TrigFlow F, sample), guidance included.

    Attributes:
        path: alpha, sigma, the time grid and the solver's integration variable.
        evaluations: network evaluations per row so far (classifier-free guidance counts once).
        watchers: told the rows of every network call of every denoiser; see ``t2ialign.counting``.
    """

    watchers: ClassVar[list[Callable[[int], None]]] = []

    def __init__(self, path: DiffusionPath, conditioning: Conditioning) -> None:
        self.path = path
        self.conditioning = conditioning
        self.evaluations = 0

    def __call__(self, x: Tensor, t: Tensor | float) -> Prediction:
        """Predict (x0, eps).

        Args:
            x: noisy latents (B, *latent_shape), float32.
            t: path time, one for all rows or one per row (B,).
        """
        import torch

        self.evaluations += 1
        for watch in self.watchers:
            watch(len(x))
        # Neither form makes a GPU wait, as torch.as_tensor would.
        if isinstance(t, torch.Tensor):
            times = t.to(x.device, torch.float32, non_blocking=True)
        else:
            times = torch.full((), t, dtype=torch.float32, device=x.device)
        return self.predict(x.float(), times.expand(x.shape[0]))

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        """The network and the conversion of its output; x float32 (B, ...), t float32 (B,)."""

    @abstractmethod
    def rows(self, index: Tensor | Sequence[int]) -> Denoiser:
        """The same model over conditioning rows ``index``: a subset, or repeats for particles and probes."""


class Sampler(Part, ABC):
    """From initial noise to clean latents."""

    Config: ClassVar[type[SamplerConfig]] = SamplerConfig

    @abstractmethod
    def sample(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Integrate from noise to x0.

        Args:
            denoiser: bound to B rows of conditioning.
            noise: unit Gaussian (B, *latent_shape), float32; gradients flow through it.
            seeds: one per image, for stochastic samplers: draw with ``t2ialign.seeding.normal``, so that
                an image does not depend on its batch.

        Returns:
            Clean latents (B, *latent_shape), float32.
        """


class StepSampler(Sampler):
    """A sampler whose every step is a Gaussian transition, so that optimizers can search or take log-probabilities.

    A deterministic step has std 0. Subclasses give the time grid and the transition; the loop is here.
    """

    @abstractmethod
    def times(self, path: DiffusionPath) -> Tensor:
        """Descending path times, float32 (steps + 1,)."""

    @abstractmethod
    def transition(
        self, path: DiffusionPath, x: Tensor, prediction: Prediction, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) and standard deviation (scalar or (B, 1, ...)) of x_s given x_t and the prediction there."""

    def sample(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        from t2ialign import seeding

        times = self.times(denoiser.path).to(noise.device)
        x = denoiser.path.prior(noise, times[0])
        for i, (t, s) in enumerate(pairwise(times)):
            mean, std = self.transition(denoiser.path, x, denoiser(x, t), t, s)
            if bool((std > 0).any()):
                if seeds is None:
                    raise ValueError("a stochastic sampler needs one seed per image")
                step_seeds = [seeding.derive(seed, "sampler", i) for seed in seeds]
                mean = mean + std * seeding.normal(step_seeds, noise.shape[1:], noise.device)
            x = mean
        return x


@dataclass(frozen=True)
class BackendInfo:
    """Facts about a loaded model.

    Attributes:
        family: "diffusion" or "autoregressive".
        latent_shape: shape of one image's noise.
        image_size: (height, width) in pixels.
        adapter_prefix: component name in a diffusers LoRA file, "transformer" or "unet".
        base_model: hub id or checkpoint reference, for model cards.
        pipeline: diffusers pipeline class that loads the LoRA, or empty.
    """

    family: str
    latent_shape: tuple[int, ...]
    image_size: tuple[int, int]
    adapter_prefix: str = "transformer"
    base_model: str = ""
    pipeline: str = ""


class Backend(Part, ABC):
    """A frozen text-to-image model."""

    Config: ClassVar[type[BackendConfig]] = BackendConfig
    info: BackendInfo

    @property
    @abstractmethod
    def trainable(self) -> nn.Module:
        """The network that LoRA adapts."""

    @property
    def adapted(self) -> nn.Module:
        """What LoRA layers are attached to: the trained network, or an ``nn.ModuleDict`` of it and other components.

        Each component of a ``ModuleDict`` is exported as a file of its own.
        """
        return self.trainable

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text to conditioning, one row per prompt, on this backend's device.

        Results are cached on disk by content; the text encoder is in memory only while it encodes.
        """

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit Gaussian float32 (B, *latent_shape): one CPU generator per image, whatever the batch or device."""
        from t2ialign import seeding

        return seeding.normal(seeds, self.info.latent_shape, self.device)

    def denoiser(self, conditioning: Conditioning) -> Denoiser:
        """The diffusion model bound to a conditioning. Diffusion family only."""
        raise TypeError(f"{type(self).__name__} has no denoiser: it is {self.info.family}")

    def decode(self, latents: Tensor) -> Tensor:
        """Clean latents to images (B, 3, H, W) in [0, 1]. Diffusion family only."""
        raise TypeError(f"{type(self).__name__} decodes inside generate: it is {self.info.family}")

    def generate(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        sampler: Sampler | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], one per row of the conditioning.

        Args:
            conditioning: B rows.
            seeds: one per image; they decide the noise, and the draws of a stochastic sampler.
            sampler: required by the diffusion family; autoregressive backends ignore it.
            noise: initial noise to use in place of the seeds' own; gradients flow back to it.
        """
        if sampler is None:
            raise ValueError("a diffusion backend needs a sampler")
        noise = self.noise(seeds) if noise is None else noise
        return self.decode(sampler.sample(self.denoiser(conditioning), noise, seeds))

    @abstractmethod
    def load_lora(self, folder: FilePath) -> None:
        """Load an exported LoRA with the tool its users will use (``load_lora_weights`` where diffusers has it)."""

    def snippet(self) -> str:
        """Python code for the model card: how to load the exported LoRA."""
        return ""

    def noise_snippet(self, prompt: str, file: str) -> str:
        """Python code that draws ``prompt`` from the noise ("latents") in a safetensors file, without t2ialign."""
        return ""


@dataclass
class State:
    """All that a resumed run needs: safetensors-able tensors and JSON-able values."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class StepResult:
    """What one optimizer step reports.

    Attributes:
        metrics: flat name -> number; deterministic (no times), so that a resumed run writes the same lines.
        images: a few images worth a look (B, 3, H, W), or None.
    """

    metrics: dict[str, float]
    images: Tensor | None = None


class Optimizer(Part, ABC):
    """An alignment algorithm.

    Step ``i`` is a function of (spec, state, i): all randomness comes from ``t2ialign.seeding``.
    """

    Config: ClassVar[type[OptimizerConfig]] = OptimizerConfig
    problem: Problem

    def setup(self, problem: Problem) -> None:
        """Take the assembled problem; allocate state."""
        self.problem = problem

    @abstractmethod
    def step(self, index: int) -> StepResult:
        """Do step ``index`` (from 0)."""

    @abstractmethod
    def generate(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        """Images as the run delivers them now: with the LoRA, the optimised noise, the solver table."""

    @abstractmethod
    def state(self) -> State:
        """Everything a resumed run needs."""

    @abstractmethod
    def load_state(self, state: State) -> None:
        """Continue from ``state()``."""

    @abstractmethod
    def export(self, folder: FilePath) -> None:
        """Write what the run delivers, and prove that it loads and gives the same images."""


class LoraOptimizer(Optimizer):
    """An optimizer whose result is the problem's LoRA: generation, state and export follow from that."""

    def generate(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        return self.problem.generate(conditioning, seeds)

    def state(self) -> State:
        return State({name: p.detach().cpu().clone() for name, p in self.problem.adapter.parameters().items()})

    def load_state(self, state: State) -> None:
        self.problem.adapter.load(state.tensors)

    def export(self, folder: FilePath) -> None:
        from t2ialign.export import export_lora

        export_lora(self.problem, folder)
