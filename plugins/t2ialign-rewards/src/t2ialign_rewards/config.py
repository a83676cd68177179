"""Options of the rewards. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from t2ialign.config import Checkpoint, Config, Dtype

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CLIP_B = "openai/clip-vit-base-patch32"

Resize = Literal["crop", "letterbox", "stretch"]
Interpolation = Literal["bicubic", "bilinear"]


class NetworkConfig(Config):
    """Options of every reward that runs a network of its own."""

    revision: str | None = Field(None, description="hub revision (branch, tag or commit) of the weights")
    dtype: Dtype = Field("float32", description="dtype of the weights; scores are computed and returned in float32")
    micro_batch: int = Field(64, ge=1, description="images per forward pass; changes memory and speed, never scores")
    offload: bool = Field(False, description="keep the weights in CPU memory, on the device only while they are used")
    resize: Resize = Field(
        "crop",
        description="to the model's square: 'crop' (shorter side, centre crop), 'letterbox' (longer side, zero"
        " padding) or 'stretch' (both sides); the same for square images",
    )
    interpolation: Interpolation = Field("bicubic", description="always antialiased")


class ClipConfig(NetworkConfig):
    """Options of the rewards that are a whole CLIP model in the transformers format."""

    model: Checkpoint = Field(CLIP_H, description="CLIP model: hub id, folder or 'pkg:<package>/<path>'")
    tokenizer: Checkpoint = Field(
        CLIP_H, description="tokenizer for a model without one of its own; all released CLIP models share it"
    )


class PickScoreConfig(ClipConfig):
    """``pickscore``."""

    model: Checkpoint = Field("yuvalkirstain/PickScore_v1", description="CLIP model fine-tuned on Pick-a-Pic")


class ClipScoreConfig(ClipConfig):
    """``clipscore``: max(scale * cos + offset, minimum)."""

    scale: float | Literal["logit"] = Field(
        "logit", description="factor of the cosine; 'logit' is the model's own exp(logit_scale), about 100"
    )
    offset: float = Field(0.0, description="added to the scaled cosine")
    minimum: float | None = Field(None, description="lower scores are raised to it; their gradient is zero")
    text: str | None = Field(None, description="compare every image with this text; default: with its prompt")


class ClipTextConfig(ClipScoreConfig):
    """``clip-text``: (cos + 1) / 2 with the prompt."""

    model: Checkpoint = Field(CLIP_B, description="CLIP model")
    scale: float | Literal["logit"] = Field(0.5, description="factor of the cosine")
    offset: float = Field(0.5, description="added to the scaled cosine")


class ClipAestheticConfig(ClipTextConfig):
    """``clip-aesthetic``: (cos + 1) / 2 with a text that praises."""

    text: str | None = Field(
        "a high quality, professional, beautiful, aesthetically pleasing image",
        description="text that a good image is close to",
    )


class NoArtifactsConfig(ClipTextConfig):
    """``no-artifacts``: 1 - (cos + 1) / 2 with a text that names defects."""

    scale: float | Literal["logit"] = Field(-0.5, description="factor of the cosine")
    text: str | None = Field(
        "blurry, low resolution, noisy, pixelated, washed out colors, oversaturated ",
        description="text that a good image is far from",
    )
