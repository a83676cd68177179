"""Z-Image Turbo on the diffusers classes."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from t2ialign import BackendInfo, UsageError, checkpoints
from t2ialign.storage.embeds import Row
from t2ialign.tensors.paths import FlowPath
from t2ialign_diffusers.backend import quiet_libraries
from t2ialign_diffusers.guided import GuidedBackend
from t2ialign_diffusers.scheduler import dynamic_shift, flow_path
from t2ialign_zimage.config import ZImageConfig


class ZImage(GuidedBackend):
    """ZImagePipeline: a single-stream rectified-flow transformer (arXiv 2511.22699), Qwen3 text, FLUX's autoencoder."""

    Config = ZImageConfig
    pipeline_names = ("ZImagePipeline",)
    ragged: ClassVar = {"prompt_embeds": "prompt_attention_mask"}

    def __init__(self, config: ZImageConfig, device: torch.device | str = "cpu") -> None:
        if config.network_checkpoint:
            self.weightless = ("transformer",)
        super().__init__(config, device)
        network = self.component_config("transformer")
        latent_shape, image_size = self.shapes(network, network["in_channels"], cells=128)
        self.info = BackendInfo(
            family="diffusion",
            latent_shape=latent_shape,
            image_size=image_size,
            base_model=config.checkpoint,
            pipeline="ZImagePipeline",
        )

    def own_components(self) -> dict[str, Any]:
        """The transformer of ``network_file``, if there is one, in the checkpoint's architecture.

        Raises:
            UsageError: the file is missing, is of another architecture, or needs the package gguf.
        """
        if self.config.network_checkpoint is None:
            return {}
        with quiet_libraries():
            from diffusers import GGUFQuantizationConfig, ZImageTransformer2DModel

            name = self.config.network_file
            file = checkpoints.resolve(self.config.network_checkpoint, patterns=[name]) / name
            if not file.is_file():
                raise UsageError(f"backend.network_file: there is no {file}")
            if self.config.is_gguf and importlib.util.find_spec("gguf") is None:
                raise UsageError(f"backend.network_file: {file} needs the package gguf: pip install gguf")
            how = {"quantization_config": GGUFQuantizationConfig(self.network_dtype)} if self.config.is_gguf else {}
            try:
                transformer = ZImageTransformer2DModel.from_single_file(
                    str(file), config=str(self.folder / "transformer"), dtype=self.network_dtype, **how
                )
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise UsageError(f"backend.network_file: {file} does not fit the checkpoint: {error}") from error
        return {"transformer": transformer}

    @cached_property
    def path(self) -> FlowPath:
        return flow_path(self.scheduler, own_grid=False, shift=dynamic_shift(self.scheduler, self.info.latent_shape))

    @property
    def prediction_type(self) -> str:
        return "flow_prediction"

    @property
    def cfg_scale(self) -> float:
        """pos + s (pos - neg) = neg + (1 + s) (pos - neg)."""
        return 1 + self.config.guidance_scale

    def encoding(self) -> dict[str, Any]:
        return {"max_sequence_length": self.config.max_sequence_length}

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "prompt_embeds": (self.config.max_sequence_length, self.component_config("transformer")["cap_feat_dim"])
        }

    def encode_batch(self, pipeline: Any, prompts: list[str]) -> list[Row]:
        embeds, _ = pipeline.encode_prompt(
            list(prompts),  # the pipeline writes its chat template into the list
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.max_sequence_length,
        )
        return [{"prompt_embeds": embed} for embed in embeds]

    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        mask = tensors["prompt_attention_mask"]
        lengths = [mask.shape[1]] * len(mask) if mask.is_meta else mask.sum(1).tolist()  # outlines know no values
        embeds = tensors["prompt_embeds"].to(self.network_dtype)
        outputs = self.trainable(
            list(x.to(self.network_dtype).unsqueeze(2).unbind()),  # each with one frame
            1 - t,
            [row[:length] for row, length in zip(embeds, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack([output.float() for output in outputs]).squeeze(2)

    def snippet_pipeline(self) -> str:
        """Like every backend's, with the transformer of ``network_file``."""
        source, name, dtype = self.config.network_checkpoint, self.config.network_file, f"torch.{self.config.dtype}"
        if source is None:
            return super().snippet_pipeline()
        local = Path(source).is_dir()
        file = repr(str(Path(source) / name)) if local else f"hf_hub_download({source!r}, {name!r})"
        how = f"    quantization_config=GGUFQuantizationConfig({dtype}),\n" if self.config.is_gguf else ""
        return f"""\
import torch
from diffusers import {"GGUFQuantizationConfig, " if how else ""}ZImagePipeline, ZImageTransformer2DModel
{"" if local else "from huggingface_hub import hf_hub_download" + chr(10)}
transformer = ZImageTransformer2DModel.from_single_file(
    {file},
    config={self.config.checkpoint!r},
    subfolder="transformer",
{how}    dtype={dtype},
)
pipe = ZImagePipeline.from_pretrained({self.config.checkpoint!r}, transformer=transformer, dtype={dtype})"""

    def snippet_arguments(self, steps: int) -> dict[str, Any]:
        return super().snippet_arguments(steps) | {"max_sequence_length": self.config.max_sequence_length}
