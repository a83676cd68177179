"""FLUX.2 klein."""

from __future__ import annotations

import math
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from t2ialign import BackendInfo
from t2ialign.storage.embeds import Row
from t2ialign.tensors.batching import split
from t2ialign.tensors.paths import FlowPath
from t2ialign_diffusers.folder import read_json
from t2ialign_diffusers.guided import GuidedBackend
from t2ialign_diffusers.scheduler import flow_path
from t2ialign_sd.config import Flux2Config


class Flux2(GuidedBackend):
    """Flux2KleinPipeline: a rectified-flow transformer over normalised 2 x 2 patches of the latents, Qwen3 text.

    All tokens of a prompt count, those of its padding too.
    """

    Config = Flux2Config
    pipeline_names = ("Flux2KleinPipeline",)
    snippet_prompt = "prompt="  # the first argument is an image

    def __init__(self, config: Flux2Config, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        network = self.component_config("transformer")
        (_, height, width), image_size = self.shapes(network, 0, cells=128)
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=(network["in_channels"], height // 2, width // 2),
            image_size=image_size,
            base_model=config.checkpoint,
            pipeline="Flux2KleinPipeline",
        )

    @cached_property
    def path(self) -> FlowPath:
        """Shifted by an amount that depends on the number of steps, as long as the scheduler's shift is dynamic."""
        if not self.scheduler.config.get("use_dynamic_shifting"):
            return flow_path(self.scheduler, own_grid=False)
        tokens = math.prod(self.info.latent_shape[1:])
        path = flow_path(self.scheduler, own_grid=False, shift=math.exp(shift_exponent(tokens, steps=50)))
        path.grid = cache(lambda steps: FlowPath(math.exp(shift_exponent(tokens, steps))).times(steps))
        return path

    @property
    def prediction_type(self) -> str:
        return "flow_prediction"

    @property
    def cfg_scale(self) -> float:
        """The pipeline guides no distilled checkpoint."""
        distilled = read_json(self.folder / "model_index.json").get("is_distilled", False)
        return 1.0 if distilled else self.config.guidance_scale

    def encoding(self) -> dict[str, Any]:
        return {"max_sequence_length": self.config.max_sequence_length}

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        width = self.component_config("transformer")["joint_attention_dim"]
        return {"prompt_embeds": (self.config.max_sequence_length, width)}

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        embeds, _ = pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.config.max_sequence_length
        )
        return [{"prompt_embeds": embed} for embed in embeds]

    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        dtype, device = self.network_dtype, x.device
        embeds = tensors["prompt_embeds"].to(dtype)
        output = self.trainable(
            hidden_states=x.flatten(2).transpose(1, 2).to(dtype),
            timestep=t.to(dtype),
            encoder_hidden_states=embeds,
            txt_ids=_positions(1, 1, embeds.shape[1]).to(device),
            img_ids=_positions(x.shape[-2], x.shape[-1], 1).to(device),
            return_dict=False,
        )[0].float()
        return output.transpose(1, 2).unflatten(2, x.shape[-2:])

    def decode(self, latents: Tensor) -> Tensor:
        """The network's latents are normalised as a batch norm of the autoencoder says, and four cells in one."""
        vae = self.pipeline.vae
        std = torch.sqrt(vae.bn.running_var.float() + vae.config.batch_norm_eps)
        cells = latents * std.view(-1, 1, 1) + vae.bn.running_mean.float().view(-1, 1, 1)
        scaled = pixel_shuffle(cells, 2).to(vae.dtype)
        each = self.config.vae_micro_batch or len(scaled)
        pixels = torch.cat([vae.decode(scaled[rows], return_dict=False)[0] for rows in split(len(scaled), each)])
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        own = {"guidance_scale": max(self.cfg_scale, 1.0), "max_sequence_length": self.config.max_sequence_length}
        return super().snippet_arguments(steps) | own


def shift_exponent(tokens: int, steps: int) -> float:
    """mu of e^mu, by which the pipeline shifts times: linear in both, fitted by its authors at 10 and 200 steps.

    Args:
        tokens: of an image; above 4300, ``steps`` makes no difference.
    """
    many = 1.6927e-4 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-5 * tokens + 1.89833333
    return many + (many - few) * (steps - 200) / 190


def _positions(rows: int, columns: int, tokens: int) -> Tensor:
    """(rows x columns x tokens, 4): 0, row, column, token."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns), torch.arange(tokens))
