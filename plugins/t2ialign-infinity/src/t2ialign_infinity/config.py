"""The spec's table for Infinity; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from t2ialign import BackendConfig, ImageSize
from t2ialign.config import Checkpoint, Dtype
from t2ialign.idle import Idle
from t2ialign.remarks.text_limits import TextLimit, cut_prompts
from t2ialign.spec import checkpoints
from t2ialign_infinity import ladders
from t2ialign_var.config import GREEDY, PLAIN, has_config

#: Most tokens of a prompt, in all released models.
TEXT_LENGTH = 512

Temperature = Annotated[float, Field(gt=0)]
Guidance = Annotated[float, Field(ge=0)]


class InfinityConfig(BackendConfig):
    """``[backend]`` with ``kind = "infinity"``."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("top_p", "top_k = 1 draws no bit", lambda own, _: own.top_k == 1),
        Idle(
            "tau",
            "top_k = 1 draws no bit, and no optimizer asks for probabilities",
            lambda own, spec: own.top_k == 1 and "tokens" not in spec.optimizer.requires().get("backend", ()),
        ),
        Idle(
            "cfg_insertion_layer",
            "guidance_scale = 1 guides nothing",
            lambda own, _: own.guidance_scale == 1,
            "raise guidance_scale, or leave it out",
        ),
        *GREEDY,
        *PLAIN,
    )

    checkpoint: Checkpoint = Field(
        "FoundationVision/Infinity",
        description="hub id or folder with the released files, or a folder (or 'pkg:...') with config.json,"
        " infinity.safetensors and vae.safetensors",
    )
    variant: Literal["2b", "8b", "8b-512", "125m"] = Field(
        "2b", description="released model: decides files, sizes, and the defaults of resolution and tau"
    )
    text_encoder: Checkpoint = Field(
        "google/flan-t5-xl", description="hub id or folder of the T5 encoder and its tokenizer"
    )
    text_dtype: Dtype = Field("bfloat16", description="dtype of the text encoder")
    text_micro_batch: int = Field(
        8, ge=1, description="prompts that the text encoder takes at once; its memory and speed alone"
    )
    resolution: Literal["0.06M", "0.25M", "0.60M", "1M"] | None = Field(
        None, description="pixel budget (256, 512, 768 or 1024 px squared); default: the variant's"
    )
    aspect_ratio: float = Field(1.0, gt=0, description="height / width; the nearest trained one is used")
    image_size: ImageSize | None = Field(
        None,
        description="[height, width] of a trained size, or one number for a square; in place of resolution and"
        " aspect_ratio",
    )
    guidance_scale: Guidance | Annotated[list[Guidance], Field(min_length=1)] = Field(
        3.0, description="classifier-free guidance: one number, or one per scale (the last one goes on); 1 = none"
    )
    cfg_insertion_layer: int = Field(
        0,
        le=0,
        description="where guidance acts: 0 on the logits, -n on the hidden states after the n-th block from the end",
    )
    tau: Temperature | Annotated[list[Temperature], Field(min_length=1)] | None = Field(
        None, description="temperature: one number, or one per scale; default: the variant's (2b: 0.5, others: 1)"
    )
    top_k: Literal[0, 1] = Field(0, description="1 takes the likelier value of every bit (greedy); 0 draws")
    top_p: float = Field(0.97, gt=0, le=1, description="a bit whose likelier value has this probability is not drawn")
    positive_prompt: bool = Field(
        False,
        description="append the authors' words for good-looking faces to prompts about people; rewards do not see them",
    )

    @model_validator(mode="after")
    def _one_size(self) -> InfinityConfig:
        given = {"resolution": self.resolution is not None, "aspect_ratio": self.aspect_ratio != 1}
        if self.image_size is not None and (others := [name for name, is_given in given.items() if is_given]):
            raise ValueError(f"image_size decides {' and '.join(others)}: leave one of them out")
        return self

    def misfits(self) -> dict[str, str]:
        released = self.image_size is not None and not has_config(self.checkpoint)
        why = ladders.untrained(self.image_size) if self.image_size is not None and released else ""
        return super().misfits() | ({"image_size": why} if why else {})

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        found, folder = super().remarks(prompts), checkpoints.on_disk(self.text_encoder)
        limit = TextLimit("", TEXT_LENGTH)
        return found + (cut_prompts("the text encoder", limit, folder, prompts) if folder else [])

    def lora_targets(self) -> list[str]:
        return ["mat_qkv", "mat_q", "mat_kv", "proj", "fc1", "fc2"]
