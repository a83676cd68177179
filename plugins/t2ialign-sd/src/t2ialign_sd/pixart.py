"""PixArt-Sigma, and PixArt-alpha DMD: a transformer distilled to one step at t = 400."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from t2ialign import Backend, BackendInfo, UsageError
from t2ialign.storage.embeds import Row
from t2ialign.tensors.paths import VPPath
from t2ialign_diffusers.backend import LORA_FILE, quiet_libraries
from t2ialign_diffusers.folder import check_complete, check_weights, fetch, read_json
from t2ialign_diffusers.guided import GuidedBackend
from t2ialign_diffusers.scheduler import vp_path
from t2ialign_sd.config import PixArtDmdConfig, PixArtSigmaConfig


class PixArt(GuidedBackend):
    """What the family shares: T5 text, noise predicted beside a variance that is dropped, no loader of LoRAs."""

    ragged: ClassVar = {"prompt_embeds": "prompt_attention_mask"}
    snippet_lora = f'load_lora_file(pipe.transformer, "{LORA_FILE}")  # of the folder of this file'

    def encoding(self) -> dict[str, Any]:
        return {"max_sequence_length": self.config.max_sequence_length}

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        channels = self.component_config("transformer")["caption_channels"]
        return {"prompt_embeds": (self.config.max_sequence_length, channels)}

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        embeds, masks, _, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.config.max_sequence_length,
        )
        return [{"prompt_embeds": embed[mask.bool()]} for embed, mask in zip(embeds, masks, strict=True)]

    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        embeds = tensors["prompt_embeds"].to(self.network_dtype)
        output = self.trainable(
            x.to(self.network_dtype),
            encoder_hidden_states=embeds,
            encoder_attention_mask=tensors["prompt_attention_mask"],
            timestep=t,
            added_cond_kwargs=self.size_conditions(embeds),
            return_dict=False,
        )[0].float()
        return output[:, : x.shape[1]]  # the other half is a learned variance

    def size_conditions(self, embeds: Tensor) -> dict[str, Tensor | None]:
        """(height, width) and their ratio for every row, where the network asks for them, as alpha's at 1024 pixels."""
        if not self.trainable.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = self.info.image_size
        wanted = {"resolution": [height, width], "aspect_ratio": [height / width]}
        return {name: embeds.new_tensor(values).expand(len(embeds), -1) for name, values in wanted.items()}

    def load_lora(self, path: str | Path, name: str = "default") -> None:
        """Attach with peft: the pipelines have no ``load_lora_weights``."""
        Backend.load_lora(self, path, name)

    def snippet_base_loras(self) -> str:
        loras = [f"BaseLora(path={lora.path!r}, weight={lora.weight})" for lora in self.config.base_lora]
        if not loras:
            return ""
        return (
            "from t2ialign_diffusers.config import BaseLora\n"
            "from t2ialign_diffusers.merging import merge_base\n\n"
            f'merge_base(pipe.transformer, "transformer", [{", ".join(loras)}])\n'
        )

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        """The prompt as it is, and no other size than the run's."""
        own = {"max_sequence_length": self.config.max_sequence_length}
        return super().snippet_arguments(steps) | own | {"clean_caption": False, "use_resolution_binning": False}


class PixArtSigma(PixArt):
    """PixArtSigmaPipeline (arXiv 2403.04692): a transformer without conditions on size, with longer prompts."""

    Config = PixArtSigmaConfig
    pipeline_names = ("PixArtSigmaPipeline",)

    def __init__(self, config: PixArtSigmaConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        network = self.component_config("transformer")
        latent_shape, image_size = self.shapes(network, network["in_channels"], cells=network["sample_size"])
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=latent_shape,
            image_size=image_size,
            base_model=config.checkpoint,
        )

    @cached_property
    def path(self) -> VPPath:
        return vp_path(self.scheduler)

    def snippet_pipeline(self) -> str:
        return (
            "from t2ialign.lora.file import load_lora_file  # PixArtSigmaPipeline has no load_lora_weights\n\n"
            + super().snippet_pipeline()
        )


class PixArtDmd(PixArt):
    """PixArtAlphaPipeline with the transformer of a DMD student (arXiv 2311.18828), T5 text; variance dropped."""

    Config = PixArtDmdConfig
    pipeline_names = ("PixArtAlphaPipeline",)
    weightless = ("transformer",)

    def __init__(self, config: PixArtDmdConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        settings = ("transformer/*.json", "scheduler/*.json")
        heavy = [] if self.is_outline else ["transformer"]
        self.network_folder = fetch(config.network_checkpoint, None, settings, heavy)
        where = f"backend.network_checkpoint = '{config.network_checkpoint}'"
        for file in ("transformer/config.json", "scheduler/scheduler_config.json"):
            if not (self.network_folder / file).is_file():
                raise UsageError(f"{where} has no {file}")
        if not self.is_outline:
            check_weights(self.network_folder / "transformer", where)
        network = read_json(self.network_folder / "transformer" / "config.json")
        latent_shape, image_size = self.shapes(network, network["in_channels"], cells=network["sample_size"])
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=latent_shape,
            image_size=image_size,
            base_model=config.network_checkpoint,
        )

    @cached_property
    def path(self) -> VPPath:
        return vp_path(self.scheduler, t_start=400.0)

    @cached_property
    def scheduler(self) -> Any:
        with quiet_libraries():
            from diffusers import DDPMScheduler

            return DDPMScheduler.from_pretrained(self.network_folder / "scheduler")

    def own_components(self) -> dict[str, Any]:
        from diffusers import PixArtTransformer2DModel

        try:
            transformer = PixArtTransformer2DModel.from_pretrained(
                self.network_folder / "transformer", dtype=self.network_dtype
            )
        except (OSError, ValueError, RuntimeError) as error:  # such as a pickle of other things than tensors
            raise UsageError(f"backend.network_checkpoint: the transformer's weights do not load: {error}") from error
        check_complete(transformer, self.network_folder / "transformer", "backend.network_checkpoint")
        return {"transformer": transformer, "scheduler": self.scheduler}

    @property
    def network_settings(self) -> Path:
        return self.network_folder / "transformer"

    def snippet_pipeline(self) -> str:
        student = self.config.network_checkpoint
        return f"""\
import torch
from diffusers import DDPMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from t2ialign.lora.file import load_lora_file  # PixArtAlphaPipeline has no load_lora_weights

transformer = PixArtTransformer2DModel.from_pretrained("{student}", subfolder="transformer")
pipe = PixArtAlphaPipeline.from_pretrained(
    "{self.config.checkpoint}"{self.snippet_edition},
    transformer=transformer,
    scheduler=DDPMScheduler.from_pretrained("{student}", subfolder="scheduler", clip_sample=False),  # as in the run
)
pipe.to(dtype=torch.{self.config.dtype})"""

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        return super().snippet_arguments(steps) | {"timesteps": [400]}
