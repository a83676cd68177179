"""Frozen text-to-image models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from t2ialign.config import BackendConfig
from t2ialign.declaration import Part

if TYPE_CHECKING:
    from torch import Tensor, nn

    from t2ialign.parts.denoiser import Denoiser
    from t2ialign.parts.sampler import Sampler
    from t2ialign.tensors.conditioning import Conditioning


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
        from t2ialign.tensors import seeding

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
    def load_lora(self, folder: Path) -> None:
        """Load an exported LoRA with the tool its users will use (``load_lora_weights`` where diffusers has it)."""

    def snippet(self) -> str:
        """Python code for the model card: how to load the exported LoRA."""
        return ""

    def noise_snippet(self, prompt: str, file: str) -> str:
        """Python code that draws ``prompt`` from the noise ("latents") in a safetensors file, without t2ialign."""
        return ""
