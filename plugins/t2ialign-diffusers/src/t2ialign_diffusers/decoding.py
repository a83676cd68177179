"""Latents to images: with the checkpoint's own decoder, or with a small distilled one while a run searches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from t2ialign import checkpoints
from t2ialign.errors import UsageError
from t2ialign.tensors.batching import split
from t2ialign_diffusers.compilation import compile_forward
from t2ialign_diffusers.config import decoder_misfit
from t2ialign_diffusers.folder import check_complete, check_weights
from t2ialign_diffusers.outline import component
from t2ialign_diffusers.quiet import quiet_libraries


class Decoding:
    """The decoders of a ``DiffusersBackend``."""

    if TYPE_CHECKING:
        config: Any
        device: torch.device
        folder: Path
        pipeline: Any

        @property
        def is_outline(self) -> bool: ...

        @property
        def trainable(self) -> nn.Module: ...

        @property
        def stable_dtype(self) -> str: ...

    _drafting = False

    def check_decoder(self) -> None:
        """
        Raises:
            UsageError: the options name a small decoder, and this kind of backend has a way of its own to decode.
        """
        if self.drafts and type(self).decode is not Decoding.decode:
            raise UsageError("backend.decoder: this kind of backend draws with the checkpoint's own decoder only")

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.draft_decoder if self._drafting else self.pipeline.vae
        scaled = _unscaled(latents, vae.config).to(vae.dtype)
        each = self.config.vae_micro_batch or len(scaled)
        pixels = torch.cat([vae.decode(scaled[rows], return_dict=False)[0] for rows in split(len(scaled), each)])
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    @property
    def drafts(self) -> bool:
        return self.config.decoder is not None

    @contextmanager
    def drafting(self, on: bool = True) -> Iterator[None]:
        before, self._drafting = self._drafting, on and self.drafts
        try:
            yield
        finally:
            self._drafting = before

    @cached_property
    def draft_decoder(self) -> Any:
        """The AutoencoderTiny of ``config.decoder``, on the device, frozen; loaded on first use.

        Such models take the latents of the diffusion network as they are: their ``scaling_factor`` is 1.

        Raises:
            UsageError: it is none, is incomplete, or is of other latents.
        """
        reference, where = self.config.decoder, f"backend.decoder = '{self.config.decoder}'"
        dtype = self.config.vae_dtype or self.stable_dtype
        if self.is_outline:
            folder = checkpoints.resolve(reference, None, ["config.json"])
            model = component(folder, "decoder", dtype)
        else:
            import diffusers

            folder = checkpoints.resolve(reference, None, ["config.json", "*.safetensors"])
            if wrong := decoder_misfit(folder, self.folder):
                raise UsageError(f"{where} {wrong}")
            check_weights(folder, where)
            with quiet_libraries():
                model = diffusers.AutoencoderTiny.from_pretrained(folder, local_files_only=True)
            check_complete(model, folder, "backend.decoder")
            model.to(getattr(torch, dtype)).eval().requires_grad_(False)
            model.decoder.to(self.device)  # the encoder is never called
            if self.config.compile != "none":
                network = self.trainable
                compile_forward(model.decoder, self.config.compile, self.config.compile_fullgraph, network)
        return model


def _unscaled(latents: Tensor, config: Any) -> Tensor:
    """The autoencoder's latents of the network's, whose channels have mean 0 and deviation 1, or nearly.

    Which of the keys a pipeline heeds is checked before: ``DiffusersConfig.latent_keys``.
    """
    shift: Any = getattr(config, "shift_factor", None) or 0.0
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:  # per channel
        shift, deviation = (torch.tensor(numbers, device=latents.device).view(-1, 1, 1) for numbers in (mean, std))
        latents = latents * deviation
    return latents / config.scaling_factor + shift
