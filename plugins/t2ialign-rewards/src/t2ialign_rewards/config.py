"""Options of the rewards. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from t2ialign.config import CHECKPOINT, LOCAL_FILE, Checkpoint, Config, Dtype
from t2ialign.idle import Idle
from t2ialign.remarks.text_limits import TextLimit, cut_prompts
from t2ialign.spec import checkpoints

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CLIP_B = "openai/clip-vit-base-patch32"
#: ImageReward's authors cut a prompt to this many.
IMAGEREWARD_TOKENS = 35

Resize = Literal["crop", "letterbox", "stretch"]
Interpolation = Literal["bicubic", "bilinear"]


def cut(prompts: Sequence[str], tokens: int | None, *references: str) -> list[str]:
    """The remark on prompts longer than a model reads; the first reference on disk that has a tokenizer counts.

    Args:
        tokens: most of them; None: what the first reference, a CLIP model, has in its config.json.
    """
    folders = [folder for folder in map(checkpoints.on_disk, references) if folder is not None]
    if tokens is None:
        file = folders[0] / "config.json" if folders else None
        settings = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
        tokens = settings.get("text_config", {}).get("max_position_embeddings", 77)
    for folder in folders:
        if (folder / "tokenizer_config.json").is_file():
            limit = TextLimit("", min(tokens, TextLimit("").own(folder) or tokens))
            return cut_prompts("the model", limit, folder, prompts)
    return []


def web_address(url: str) -> str:
    """The address, where it is one and holds no secret: a token belongs into a variable.

    Raises:
        ValueError: it is none, or holds a name or a password.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine or any(map(str.isspace, url)):
        raise ValueError("must be a web address, http://... or https://...")
    if "@" in url:
        raise ValueError("must hold no name or password; put a token into the variable that token_variable names")
    return url


class NetworkConfig(Config):
    """Options of every reward that runs a network of its own."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "revision",
            "only weights of the hub have revisions",
            lambda own, _: checkpoints.is_local(str(getattr(own, "model", getattr(own, "checkpoint", "")))),
        ),
        Idle(
            "offload",
            "weights are in CPU memory anyway where run.device = 'cpu'",
            lambda own, spec: spec is not None and spec.run.device == "cpu",
        ),
    )

    revision: str | None = Field(None, description="hub revision (branch, tag or commit) of the weights")
    dtype: Dtype = Field("float32", description="dtype of the weights; scores are computed and returned in float32")
    micro_batch: int = Field(64, ge=1, description="images per forward pass; changes memory and speed, never scores")
    offload: bool = Field(False, description="keep the weights in CPU memory, on the device only while they are used")


def _has_tokenizer(model: str) -> bool:
    folder = checkpoints.on_disk(model)
    return folder is not None and (folder / "tokenizer_config.json").is_file()


class SquareConfig(NetworkConfig):
    """Options of the networks that look at squares."""

    resize: Resize = Field(
        "crop",
        description="to the model's square: 'crop' (shorter side, centre crop), 'letterbox' (longer side, zero"
        " padding) or 'stretch' (both sides); the same for square images",
    )
    interpolation: Interpolation = Field("bicubic", description="always antialiased")


class ClipConfig(SquareConfig):
    """Options of the rewards that are a whole CLIP model in the transformers format."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle("tokenizer", "the model has a tokenizer of its own", lambda own, _: _has_tokenizer(own.model)),
    )

    model: Checkpoint = Field(CLIP_H, description="CLIP model: hub id, folder or 'pkg:<package>/<path>'")
    tokenizer: Checkpoint = Field(
        CLIP_H, description="tokenizer for a model without one of its own; all released CLIP models share it"
    )

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        return super().remarks(prompts) + cut(self.read_from(prompts), None, self.model, self.tokenizer)

    def read_from(self, prompts: Sequence[str]) -> Sequence[str]:
        """Texts that its tokenizer reads."""
        return prompts


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

    def read_from(self, prompts: Sequence[str]) -> Sequence[str]:
        return prompts if self.text is None else []


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


class ClipDiversityConfig(ClipConfig):
    """``clip-diversity``: 0 for equal images, about 0.1 to 0.4."""

    model: Checkpoint = Field(CLIP_B, description="CLIP model whose image embeddings are compared")

    def read_from(self, prompts: Sequence[str]) -> Sequence[str]:
        return []


class HpsConfig(SquareConfig):
    """``hps``: cosine in the CLIP space of HPSv2, about 0.2 to 0.35."""

    version: Literal["v2", "v2.1"] = Field("v2.1", description="their values are not comparable")
    checkpoint: Checkpoint = Field(
        "xswu/HPSv2", description="hub id or folder with HPS_v2_compressed.pt or HPS_v2.1_compressed.pt, or that file"
    )
    base: Checkpoint = Field(CLIP_H, description="CLIP model whose config.json and tokenizer the weights belong to")
    resize: Resize = Field(
        "letterbox", description="'letterbox' as in the authors' benchmark, 'crop' as in ReNO; the same for squares"
    )

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        return super().remarks(prompts) + cut(prompts, None, self.base)


class HpsV3Config(NetworkConfig):
    """``hpsv3``: a real number; only differences mean something."""

    checkpoint: Checkpoint = Field(
        "MizzenAI/HPSv3", description="hub id or folder with HPSv3.safetensors, or that file"
    )
    base: Checkpoint = Field(
        "Qwen/Qwen2-VL-7B-Instruct", description="Qwen2-VL whose config.json and tokenizer the weights belong to"
    )
    rubric: Annotated[str | None, CHECKPOINT] = Field(
        None,
        description="a text file with the authors' instruction: {prompt} becomes the prompt, and the score is read at"
        " <|Reward|>. Default: an instruction of ours, whose scores do not compare with published ones",
    )
    dtype: Dtype = Field(
        "bfloat16", description="dtype of the weights, bfloat16 as its authors use it; the head is float32"
    )
    micro_batch: int = Field(8, ge=1, description="images per forward pass; changes memory and speed, never scores")

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        ours = ["without the authors' instruction (rubric), its scores do not compare with published ones"]
        return super().remarks(prompts) + (ours if self.rubric is None else [])


class ImageRewardConfig(SquareConfig):
    """``imagereward``: about standard normal over generated images."""

    checkpoint: Checkpoint = Field(
        "THUDM/ImageReward", description="hub id or folder with ImageReward.pt or .safetensors, or that file"
    )
    tokenizer: Checkpoint = Field("google-bert/bert-base-uncased", description="BERT tokenizer")

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        return super().remarks(prompts) + cut(prompts, IMAGEREWARD_TOKENS, self.tokenizer)


class AestheticConfig(SquareConfig):
    """``aesthetic``: 1 to 10, mostly 4 to 7; the prompt plays no part."""

    model: Checkpoint = Field("openai/clip-vit-large-patch14", description="CLIP model whose image embedding is read")
    head: Annotated[str, LOCAL_FILE] = Field(
        "sac+logos+ava1",
        pattern=r"^(sac\+logos\+ava1|ava\+logos|.+\.(pth|pt|safetensors))$",
        description="'sac+logos+ava1' (DDPO, DAV, RL-EPD), 'ava+logos' (ReNO), or the file of a linearMSE head of the"
        " improved aesthetic predictor; scores of different heads are not comparable",
    )


class MpsConfig(SquareConfig):
    """``mps``: about 5 to 16."""

    checkpoint: Checkpoint = Field(
        description="MPS_overall.safetensors, or a folder with it; made from the released checkpoint by"
        " 'python -m t2ialign_rewards.convert_mps'"
    )
    base: Checkpoint = Field(CLIP_H, description="CLIP model whose config.json and tokenizer the weights belong to")
    condition: str = Field(
        "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance,"
        " texture, quantity, attributes, position, number, location, word, things.",
        min_length=1,
        description="what to judge, in words; the default is the authors' overall preference",
    )
    threshold: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="prompt tokens of a lower relevance to the condition are not looked at; 0.3 in the authors'"
        " evaluation, 0.01 in their pairwise code",
    )

    def remarks(self, prompts: Sequence[str]) -> list[str]:
        return super().remarks(prompts) + cut(prompts, None, self.base)


class JpegConfig(Config):
    """``jpeg-incompressibility`` and ``jpeg-compressibility``: plus or minus the size of the JPEG in kB."""

    quality: int = Field(95, ge=1, le=100, description="JPEG quality")
    per_megapixel: bool = Field(False, description="kB per million pixels, comparable between image sizes")


class ServiceConfig(Config):
    """Options of every client of an HTTP service."""

    idle: ClassVar[tuple[Idle, ...]] = (
        Idle(
            "silence",
            "timeout ends a silent answer before",
            lambda own, _: own.silence is not None and own.silence >= own.timeout,
            "lower it, or leave it out",
        ),
        Idle(
            "backoff",
            "retries = 0 and wait = 0 ask once",
            lambda own, _: own.retries == 0 and own.wait == 0,
        ),
    )

    timeout: float = Field(60.0, gt=0, description="seconds for one answer, from the first byte to the last")
    silence: float | None = Field(None, gt=0, description="seconds without a byte; default: timeout")
    retries: int = Field(3, ge=0, description="further tries after an answer that is late, wrong or says 5xx")
    backoff: float = Field(1.0, ge=0, description="seconds before the first further try; doubled for each next one")
    wait: float = Field(
        600.0,
        ge=0,
        description="seconds for which a service that cannot be reached or is busy (429, 502, 503, 504) is asked again;"
        " then the run keeps its state and stops, and can be resumed",
    )
    concurrency: int = Field(4, ge=1, description="requests under way at once, for each server")
    token_variable: str | None = Field(
        None, description="environment variable whose value is sent as 'Authorization: Bearer ...'"
    )


class RemoteConfig(ServiceConfig):
    """``remote``: scores from an HTTP service."""

    url: str | list[str] = Field(description="where to POST; a list: of several servers that give the same scores")
    reward: str | None = Field(None, description="which of a server's rewards; default: its only one")
    batch: int = Field(16, ge=1, description="images per request")
    send: Literal["auto", "png", "uint8", "float32"] = Field(
        "auto",
        description="images as PNG in JSON, which any service reads ('png'), or as tensors for 't2ialign serve':"
        " 'uint8', the same pixels and faster, or 'float32', exact. 'auto' asks GET /health once: uint8 for 't2ialign"
        " serve', png for any other",
    )

    @field_validator("url")
    @classmethod
    def _addresses(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("needs at least one address")
        for url in [value] if isinstance(value, str) else value:
            web_address(url)
        return value
