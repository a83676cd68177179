"""Frozen text-to-image models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from t2ialign.config import BackendConfig
from t2ialign.declaration import Part
from t2ialign.errors import blaming
from t2ialign.parts.sampler import checked_latents

if TYPE_CHECKING:
    from torch import Tensor, nn

    from t2ialign.parts.denoiser import Denoiser
    from t2ialign.parts.sampler import Sampler
    from t2ialign.ranks.world import World
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

    role = "backend"
    Config: ClassVar[type[BackendConfig]] = BackendConfig
    info: BackendInfo
    #: True when the backend can be built on the device "meta", where it needs no weights: ``encode``, ``noise`` and
    #: ``generate`` then give tensors of the right shapes without values. What a run takes is estimated with it.
    has_outline: ClassVar[bool] = False

    @property
    def compiled(self) -> bool:
        """Whether layers of the trained network run inside of what torch.compile made."""
        return False

    def compiling(self, on: bool = True) -> AbstractContextManager[None]:
        """Context in which code may be compiled, or, if not ``on``, in which none is but what was compiled is used.

        A run's steps are inside of one, all else of a run inside of the other: a graph for a few images never pays.
        """
        return nullcontext()

    @property
    @abstractmethod
    def trainable(self) -> nn.Module:
        """The network that LoRA adapts."""

    def resident(self) -> dict[str, int]:
        """Bytes of weights on the device while images are drawn, by component; without the LoRA."""
        return {"network": sum(tensor.nbytes for tensor in self.trainable.state_dict().values())}

    def text_bytes(self) -> int:
        """Bytes of the text encoders' weights, which are on the device before the network is."""
        return 0

    @property
    def adapted(self) -> nn.Module:
        """What LoRA layers are attached to: the trained network, or an ``nn.ModuleDict`` of it and other components.

        Each component of a ``ModuleDict`` is exported as a file of its own.
        """
        return self.trainable

    def shard(self, whole: Iterable[nn.Parameter], world: World) -> None:
        """Split the trained network's weights over the ranks, but for the parameters ``whole``."""
        from t2ialign.ranks.sharding import shard

        shard(self.trainable, whole, world, self.device)

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text to conditioning, one row per prompt, on the CPU: ``denoiser`` and ``generate`` bring rows to the device.

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

    def drafting(self, on: bool = True) -> AbstractContextManager[None]:
        """Context in which images are only good enough to search by, if the options have a faster way to draw such.

        A step of an optimizer is inside. What a run delivers or measures is drawn outside, or with ``drafting(False)``.
        """
        return nullcontext()

    @property
    def drafts(self) -> bool:
        """Whether images inside ``drafting`` are others."""
        return False

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
        denoiser = self.denoiser(conditioning)
        with blaming(sampler.label):
            latents = checked_latents(sampler, sampler.sample(denoiser, noise, seeds), noise)
        return self.decode(latents)

    def draw_tokens(
        self, conditioning: Conditioning, seeds: Sequence[int], plain: bool = True, guided: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1], and the tokens that they are made of. Backends that provide "tokens" only.

        Args:
            conditioning: B rows.
            seeds: one per image.
            plain: draw from the very distribution that ``log_prob`` is of: without filters, and without guidance unless
                ``guided``.
            guided: as for ``log_prob``.

        Returns:
            Images, and tokens int64 (B, L) or bits (B, L, n), coarse scales first.
        """
        raise TypeError(f"{type(self).__name__} has no tokens: it is {self.info.family}")

    def log_prob(self, conditioning: Conditioning, tokens: Tensor, guided: bool = False) -> Tensor:
        """Log-probabilities of tokens given those of coarser scales, by teacher forcing; gradients flow.

        Args:
            conditioning: B rows.
            tokens: as ``draw_tokens`` gives them, or those of the first scales alone (B, l, ...).
            guided: of the logits with the backend's guidance, at two rows for each image.

        Returns:
            float32 (B, l), of all bits of a token together.
        """
        raise TypeError(f"{type(self).__name__} has no tokens: it is {self.info.family}")

    @property
    def scale_of(self) -> Tensor:
        """The scale of every token, int64 (L,), ascending. Backends that provide "tokens" only."""
        raise TypeError(f"{type(self).__name__} has no tokens: it is {self.info.family}")

    def load_lora(self, path: str | Path, name: str = "default") -> None:
        """Attach a LoRA, as peft layers, with the tool its users will use (``load_lora_weights`` where there is one).

        Args:
            path: file, folder or hub id.
            name: peft's name of the adapter; another one may be attached already.

        Raises:
            UsageError: no LoRA there, or tensors that this network does not take.
        """
        from t2ialign.lora.adapter import move_adapters
        from t2ialign.lora.file import attach

        attach(self.adapted, self.read_lora(path), name)
        move_adapters(self.adapted, self.device)

    def read_lora(self, reference: str | Path) -> dict[str, Tensor]:
        """The factors of a LoRA for ``adapted``, "<module path>.lora_A.weight" (r, in) and "….lora_B.weight" (out, r).

        float32, every strength folded into B.

        Args:
            reference: file, folder or hub id, of any layout whose names ``lora_names`` knows.

        Raises:
            UsageError: no LoRA there, or tensors that the network does not take, by name.
        """
        from t2ialign.lora.reading import fitted

        return fitted(self.adapted, reference, self.info.adapter_prefix, self.lora_names)

    def to_kohya(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A LoRA of ``trainable`` under the names of kohya's scripts, where the config's ``lora_formats`` has them.

        Args:
            tensors: "<module path>.lora_A.weight" and "….lora_B.weight", the scale folded into B.
        """
        raise NotImplementedError(f"{type(self).__name__} has no names for kohya's scripts")

    def write_fused(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Write the whole checkpoint with a LoRA in its weights, where the config's ``lora_formats`` has that form.

        Args:
            tensors: of ``adapted``, "<module path>.lora_A.weight" and "….lora_B.weight", the scale folded into B.
        """
        raise NotImplementedError(f"{type(self).__name__} writes no fused checkpoint")

    def modelspec(self) -> dict[str, str]:
        """What the header of a LoRA file says of the model: "architecture" and "prediction_type" of the ModelSpec."""
        return {}

    def lora_names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A LoRA's factors under "<component>.<module>.lora_A.weight" and "….lora_B.weight", whoever named them.

        Args:
            tensors: factors as a file names them, every strength folded into B.
        """
        return {name.replace("base_model.model", self.info.adapter_prefix): tensor for name, tensor in tensors.items()}

    def snippet(self, sampler: Sampler | None = None) -> str:
        """Python code for the model card: how to load the exported LoRA, and draw as the run's sampler does."""
        return ""

    def noise_snippet(self, prompt: str, file: str, sampler: Sampler | None = None) -> str:
        """Python code that draws ``prompt`` from the noise ("latents") in a safetensors file, without t2ialign."""
        return ""
