"""Multi-step Sana on the diffusers classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath
from t2ialign_diffusers.guided import GuidedBackend
from t2ialign_diffusers.scheduler import flow_path
from t2ialign_sana.config import SanaConfig
from t2ialign_sana.text import SanaText


class Sana(SanaText, GuidedBackend):
    """SanaPipeline: a linear-attention transformer on rectified flow (arXiv 2410.10629) with an AutoencoderDC."""

    Config = SanaConfig
    pipeline_names = ("SanaPipeline",)

    @cached_property
    def path(self) -> FlowPath:
        return flow_path(self.scheduler, own_grid=True)

    @property
    def prediction_type(self) -> str:
        return "flow_prediction"

    @cached_property
    def negative(self) -> Conditioning:
        """The negative prompt, which the pipeline encodes without the instruction."""
        plain = copy.copy(self)  # shares the text encoders while they are loaded
        plain.config = self.config.model_copy(update={"complex_human_instruction": False})
        return SanaText.encode(plain, [self.config.negative_prompt or ""])

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        with self.text.kept():
            if self.cfg_scale > 1:
                _ = self.negative  # now, before the network is loaded
            return SanaText.encode(self, prompts)

    def network(self, x: Tensor, t: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        timestep_scale = self.component_config("transformer").get("timestep_scale", 1.0)
        output = self.trainable(
            x.to(self.network_dtype),
            encoder_hidden_states=tensors["prompt_embeds"].to(self.network_dtype),
            encoder_attention_mask=tensors["prompt_attention_mask"],
            timestep=t * self.path.train_steps * timestep_scale,
            return_dict=False,
        )[0].float()
        return output[:, : x.shape[1]]  # some checkpoints predict a variance too
