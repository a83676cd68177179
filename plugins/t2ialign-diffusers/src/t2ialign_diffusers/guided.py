"""Diffusion backends whose network predicts noise, data or velocity, with classifier-free guidance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from t2ialign.parts.denoiser import Denoiser
from t2ialign.parts.sampler import Sampler
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import DiffusionPath, FlowPath, Prediction
from t2ialign_diffusers.backend import DiffusersBackend, quiet_libraries
from t2ialign_diffusers.parameterisation import to_prediction

#: Schedulers that take DDIM's step: each on the grid of its own family.
FIRST_ORDER = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
#: (x (B, ...), path times (B,), conditioning tensors) -> the network's output (B, ...), float32.
Network = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]


class GuidedDenoiser(Denoiser):
    """A network as a denoiser; with ``negative``, its output is o_n + guidance_scale (o_c - o_n) (arXiv 2207.12598).

    Both halves run as one batch of 2B rows, negative first: two whole copies of the batch in image order.
    """

    def __init__(
        self,
        path: DiffusionPath,
        conditioning: Conditioning,
        network: Network,
        prediction_type: str,
        guidance_scale: float = 1.0,
        negative: Conditioning | None = None,
    ) -> None:
        """
        Args:
            path: of the network's training.
            conditioning: B rows.
            network: the network.
            prediction_type: what it predicts, see ``t2ialign_diffusers.parameterisation``.
            guidance_scale: 1 is no guidance.
            negative: one row, for all images; None switches guidance off.
        """
        super().__init__(path, conditioning)
        self.network = network
        self.prediction_type = prediction_type
        self.guidance_scale = guidance_scale
        self.negative = negative

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        if self.negative is None:
            return self.conditioning.tensors
        return joined(self.negative[[0] * len(self.conditioning)], self.conditioning).tensors

    def network_output(self, x: Tensor, t: Tensor) -> Tensor:
        if self.negative is None:
            return self.network(x, t, self._tensors)
        return self.guided(*self.network(torch.cat([x, x]), torch.cat([t, t]), self._tensors).chunk(2))

    def guided(self, without: Tensor, with_prompt: Tensor) -> Tensor:
        """One output of the two branches'."""
        return without + self.guidance_scale * (with_prompt - without)

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        return to_prediction(self.prediction_type, self.path, x, t, self.network_output(x, t))

    def rows(self, index: Tensor | Sequence[int]) -> GuidedDenoiser:
        return type(self)(
            self.path,
            self.conditioning[index],
            self.network,
            self.prediction_type,
            self.guidance_scale,
            self.negative,
        )


class GuidedBackend(DiffusersBackend):
    """A pipeline with a scheduler; subclasses write ``network``, ``encode_batch``, ``path`` and ``info``.

    Attributes:
        denoiser_class: how the two branches become one.
    """

    denoiser_class: ClassVar[type[GuidedDenoiser]] = GuidedDenoiser

    @cached_property
    def scheduler(self) -> Any:
        """The checkpoint's scheduler, as its files say; no weights are loaded for it."""
        with quiet_libraries():
            import diffusers

            folder = self.folder / "scheduler"
            return getattr(diffusers, self.component_config("scheduler")["_class_name"]).from_pretrained(folder)

    @property
    @abstractmethod
    def path(self) -> DiffusionPath:
        """The path of the network's training, with the checkpoint's own time grid."""

    @property
    def prediction_type(self) -> str:
        """What the network predicts, see ``t2ialign_diffusers.parameterisation``."""
        return self.scheduler.config.get("prediction_type", "epsilon")

    @property
    def cfg_scale(self) -> float:
        """w of o_n + w (o_c - o_n); at most 1 means no second branch."""
        return self.config.guidance_scale

    @abstractmethod
    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """The network's output at latents x (B, ...) and path times t (B,), float32."""

    @cached_property
    def negative(self) -> Conditioning:
        """One row: what guidance leads away from."""
        return self.as_negative(super().encode([self.config.negative_prompt or ""]))

    def as_negative(self, encoded: Conditioning) -> Conditioning:
        """The pipeline's own form of the encoded negative prompt."""
        return encoded

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        if self.cfg_scale <= 1:
            return super().encode(prompts)
        both = super().encode([*prompts, self.config.negative_prompt or ""])  # the encoder loads once for all
        self.negative = self.as_negative(both[[len(prompts)]])
        return both[: len(prompts)]

    def snippet_scheduler(self, sampler: Sampler | None) -> str:
        """The scheduler that takes the sampler's steps on this checkpoint's own grid, see ``test_stock_schedulers``."""
        found = sampler.scheduler() if sampler else ("", {})
        if found is None:
            return super().snippet_scheduler(sampler)
        (name, options), own = found, type(self.scheduler).__name__
        if name in FIRST_ORDER:  # one step in three guises
            name = "EulerDiscreteScheduler" if hasattr(self.scheduler, "sigmas") else "DDIMScheduler"
            if isinstance(self.path, FlowPath):
                name = "FlowMatchEulerDiscreteScheduler"
        if not name or (name == own and not options):
            return ""
        extra = "".join(f", {key}={value!r}" for key, value in options.items())
        return (
            f"from diffusers import {name}\n\n"
            f"pipe.scheduler = {name}.from_config(pipe.scheduler.config{extra})  # the run's sampler\n"
        )

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        negative = {} if self.config.negative_prompt is None else {"negative_prompt": self.config.negative_prompt}
        return super().snippet_arguments(steps) | {"guidance_scale": self.config.guidance_scale} | negative

    def denoiser(self, conditioning: Conditioning) -> Denoiser:
        negative = self.negative.to(self.device) if self.cfg_scale > 1 else None
        conditioning = conditioning.to(self.device)
        return self.denoiser_class(
            self.path, conditioning, self.network, self.prediction_type, max(self.cfg_scale, 1.0), negative
        )


def joined(first: Conditioning, second: Conditioning) -> Conditioning:
    """Rows of both; ragged tensors are padded with zeros to the longer one."""
    tensors: dict[str, Tensor] = {}
    for name, a in first.tensors.items():
        b = second.tensors[name]
        if a.ndim > 1:
            length = max(a.shape[1], b.shape[1])
            a, b = (pad(part, (0, 0) * (part.ndim - 2) + (0, length - part.shape[1])) for part in (a, b))
        tensors[name] = torch.cat([a, b])
    return Conditioning((*first.prompts, *second.prompts), tensors)
