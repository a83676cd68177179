"""Version 1 of what a client and a server of rewards say to each other.

``POST <url>`` with one of two bodies, and ``{"scores": [number, ...]}`` as the answer, one finite number per image, or
``null`` for an image without a score if the request says ``"missing": true``:

- ``application/json``: ``{"protocol": 1, "images": [PNG in base64, ...], "prompts": [text, ...], "metadata": [object,
  ...]}`` and perhaps ``"reward"``, the name of one of the server's rewards. Any service can speak this.
- ``application/x-safetensors``: the tensor ``images`` (B, 3, H, W) in [0, 1], or uint8, and all other keys as JSON
  under ``request`` of the file's metadata. Exact, and without the time that PNG takes.

Whatever is wrong is answered with another status than 200 and ``{"error": text}``. ``GET /health`` gives
``{"protocol": 1, "rewards": [name, ...]}``.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from t2ialign.spec.prompts import Prompt, data_of
from t2ialign.storage.image_files import pixels_of
from t2ialign.storage.images import to_pil

VERSION = 1
JSON = "application/json"
TENSORS = "application/x-safetensors"
Send = Literal["png", "uint8", "float32"]
DTYPES = {"U8": torch.uint8, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: PNG's lossless compression where it is fast (zlib's run lengths): a quarter of the usual time for as many bytes.
FAST = {"compress_level": 1, "compress_type": 3}


class ProtocolError(ValueError):
    """A message is not what the protocol says; the text is fit to be sent back."""


@dataclass(frozen=True)
class Question:
    """Images that a client wants to be scored.

    Attributes:
        images: float32 (B, 3, H, W) in [0, 1].
        reward: name of the wanted reward; None where the server has only one.
        missing: whether ``null`` is an answer for an image without a finite score.
    """

    images: Tensor
    prompts: list[Prompt]
    reward: str | None
    missing: bool = False


def ask(
    images: Tensor, prompts: Sequence[str], send: Send, reward: str | None = None, missing: bool = False
) -> tuple[bytes, str]:
    """The body of a request for images (B, 3, H, W) in [0, 1], and its content type."""
    words: dict[str, Any] = {
        "protocol": VERSION,
        "prompts": [str(prompt) for prompt in prompts],
        "metadata": [dict(data_of(prompt)) for prompt in prompts],
    }
    if reward is not None:
        words["reward"] = reward
    if missing:
        words["missing"] = True
    if send == "png":
        words["images"] = [png_base64(image) for image in images]
        return json.dumps(words).encode(), JSON
    tensor = images.detach().float()
    if send == "uint8":
        tensor = (tensor.clamp(0, 1) * 255).round().to(torch.uint8)
    return save({"images": tensor.cpu().contiguous()}, {"request": json.dumps(words)}), TENSORS


def png_base64(image: Tensor) -> str:
    """(3, H, W) in [0, 1] as an 8-bit PNG in base64."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG", **FAST)
    return base64.b64encode(buffer.getvalue()).decode()


def speaks(health: bytes) -> bool:
    """Whether what ``GET /health`` gave is the answer of a server that speaks this version."""
    try:
        found = json.loads(health)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("protocol") == VERSION and isinstance(found.get("rewards"), list)


def answered(body: bytes, count: int, missing: bool = False) -> list[float]:
    """The scores in an answer.

    Args:
        missing: take ``null``, and the NaN that some services write, for an image without a score: NaN.

    Raises:
        ProtocolError: not exactly ``count`` finite numbers.
    """
    try:
        scores = json.loads(body, parse_constant=_missing if missing else _no_number)["scores"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(f'is not {{"scores": [...]}} but: {shown(body)}') from error
    if not isinstance(scores, list):
        raise ProtocolError(f"has no list of scores but: {shown(body)}")
    for number, score in enumerate(scores):
        if missing and score is None:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or not _finite(score):
            raise ProtocolError(f"has {score!r} as score {number}; must be a finite number"[:300])
    if len(scores) != count:
        raise ProtocolError(f"has {len(scores)} scores for {count} images")
    return [math.nan if score is None else float(score) for score in scores]


def shown(body: bytes, most: int = 200) -> str:
    """The beginning of a body that others wrote, fit for a terminal."""
    return "".join(c if c.isprintable() else " " for c in body[:most].decode(errors="replace")) or "(nothing)"


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _missing(word: str) -> None:
    if word != "NaN":
        _no_number(word)


def _finite(score: float) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:  # an integer beyond all floats
        return False


def asked(body: bytes, content_type: str, most_images: int, most_pixels: int) -> Question:
    """What a client wants.

    Args:
        content_type: ``JSON`` or ``TENSORS``.
        most_images: in one request.
        most_pixels: of one image.

    Raises:
        ProtocolError: the body is no request, or asks for more than that; says what.
    """
    if content_type == TENSORS:
        images, words = _tensors(body)
    else:
        words = _object(body)
        images = None
    version = words.get("protocol", VERSION)
    if version != VERSION:
        raise ProtocolError(f"protocol is {version!r}; this server speaks {VERSION}")
    prompts = _prompts(words)
    if images is None:
        pictures = words.get("images")
        if not isinstance(pictures, list) or not all(isinstance(picture, str) for picture in pictures):
            raise ProtocolError("images must be a list of PNG in base64")
        if len(pictures) > most_images:
            raise ProtocolError(f"{len(pictures)} images are more than {most_images}")
        images = _stacked([_picture(text, most_pixels) for text in pictures])
    if len(images) != len(prompts) or not prompts:
        raise ProtocolError(f"there are {len(images)} images and {len(prompts)} prompts; must be as many, at least one")
    if len(images) > most_images or images.shape[2] * images.shape[3] > most_pixels:
        raise ProtocolError(f"images {tuple(images.shape)}: most are {most_images} of {most_pixels} pixels")
    reward = words.get("reward")
    if not (reward is None or isinstance(reward, str)):
        raise ProtocolError("reward must be a name")
    return Question(images, prompts, reward, words.get("missing") is True)


def _object(body: bytes | str) -> Mapping[str, Any]:
    try:
        words = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the request is no JSON") from error
    if not isinstance(words, dict):
        raise ProtocolError("the request is no JSON object")
    return words


def _tensors(body: bytes) -> tuple[Tensor, Mapping[str, Any]]:
    try:
        length = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + length])
        words = _object(header["__metadata__"]["request"])
        images = load(body)["images"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError("the request is no safetensors file with 'images' and 'request'") from error
    if images.dtype not in DTYPES.values() or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ProtocolError(f"images are {images.dtype} {tuple(images.shape)}; must be (B, 3, H, W), float or uint8")
    return images.float() / 255 if images.dtype == torch.uint8 else images.float(), words


def _prompts(words: Mapping[str, Any]) -> list[Prompt]:
    texts = words.get("prompts")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ProtocolError("prompts must be a list of texts")
    data = words.get("metadata", [{}] * len(texts))
    if not isinstance(data, list) or len(data) != len(texts) or not all(isinstance(one, dict) for one in data):
        raise ProtocolError("metadata must be a list of objects, one per prompt")
    return [Prompt(text, own) for text, own in zip(texts, data, strict=True)]


def _picture(text: str, most_pixels: int) -> Tensor:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as file:
            if file.width * file.height > most_pixels:
                raise ProtocolError(f"an image has {file.width} x {file.height} pixels; most are {most_pixels}")
            return pixels_of(file)
    except ProtocolError:
        raise
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ProtocolError("an image is no PNG in base64") from error


def _stacked(pictures: Sequence[Tensor]) -> Tensor:
    if not pictures or any(picture.shape != pictures[0].shape for picture in pictures):
        raise ProtocolError("the images of a request must have one size, and there must be at least one")
    return torch.stack(list(pictures))
