"""Ways from noise to latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from t2ialign.config import SamplerConfig
from t2ialign.declaration import Part
from t2ialign.errors import PartError

if TYPE_CHECKING:
    from torch import Tensor

    from t2ialign.parts.denoiser import Denoiser
    from t2ialign.tensors.paths import DiffusionPath, Prediction


class Sampler(Part, ABC):
    """From initial noise to clean latents."""

    role = "sampler"
    Config: ClassVar[type[SamplerConfig]] = SamplerConfig
    #: Whether its latents were found finite once.
    looked_at = False

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

    def scheduler(self) -> tuple[str, dict[str, Any]] | None:
        """The scheduler class of diffusers that takes the same steps, and its options, for model cards.

        An empty name is the pipeline's own; None says that there is no such class.
        """
        return None


class Transition(NamedTuple):
    """One step of a trajectory, x_s ~ N(mean, std^2) given x_t; a deterministic step has std 0 and ends at its mean.

    Attributes:
        x: x_t (B, *latent_shape).
        mean: (B, *latent_shape).
        std: scalar or (B, 1, ...).
        next: x_s (B, *latent_shape).
    """

    x: Tensor
    mean: Tensor
    std: Tensor
    next: Tensor


def checked_latents(sampler: Sampler, latents: Tensor, noise: Tensor) -> Tensor:
    """What a sampler returned, as it is. Values are looked at once per sampler, since that makes a device wait.

    Raises:
        PartError: they are no latents of the noise's shape, or not finite.
    """
    if getattr(latents, "shape", None) != noise.shape:
        shape = tuple(latents.shape) if hasattr(latents, "shape") else type(latents).__name__
        raise PartError(f"{sampler.label} returned {shape}, must be latents of shape {tuple(noise.shape)}")
    if not latents.is_floating_point():
        raise PartError(f"{sampler.label} returned {latents.dtype}, must be floating-point latents")
    if not sampler.looked_at and not latents.is_meta and not bool(latents.isfinite().all()):
        raise PartError(
            f"{sampler.label} returned latents that are not finite; if the backend's denoiser is why, try a wider dtype"
        )
    sampler.looked_at = True
    return latents


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

    def walk(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Iterator[Transition]:
        """The transitions from noise to x0, one after the other; arguments as those of ``sample``."""
        from t2ialign.tensors import seeding

        times = self.times(denoiser.path).to(noise.device)
        x = denoiser.path.prior(noise, times[0])
        for i, (t, s) in enumerate(pairwise(times)):
            mean, std = self.transition(denoiser.path, x, denoiser(x, t), t, s)
            following = mean
            if bool((std > 0).any()):
                if seeds is None:
                    raise ValueError("a stochastic sampler needs one seed per image")
                step_seeds = [seeding.derive(seed, "sampler", i) for seed in seeds]
                following = mean + std * seeding.normal(step_seeds, noise.shape[1:], noise.device)
            yield Transition(x, mean, std, following)
            x = following

    def sample(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        for step in self.walk(denoiser, noise, seeds):
            x = step.next
        return x
