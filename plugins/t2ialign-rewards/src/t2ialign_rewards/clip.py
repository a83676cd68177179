"""One wrapper around transformers' CLIP: images and prompts to unit embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import ReferenceType, WeakValueDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from t2ialign import checkpoints
from t2ialign_rewards import weights
from t2ialign_rewards.config import ClipConfig, SquareConfig
from t2ialign_rewards.preprocess import Preprocess, channel_statistics
from t2ialign_rewards.text import Tokenizer, has_tokenizer

CACHED_PROMPTS = 4096
#: What a hub repository is asked for when only its settings and tokenizer are needed.
SETTINGS = ("*.json", "*.txt")


class LastResult:
    """The result for the last tensor, while that very tensor is alive and unchanged."""

    def __init__(self) -> None:
        self._last: tuple[ReferenceType[Tensor], int, Tensor] | None = None

    def recall(self, tensor: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, or what it gave when it was last asked about this same tensor."""
        if tensor.is_inference():  # such tensors do not count their changes
            return compute()
        if self._last is None or self._last[0]() is not tensor or self._last[1] != tensor._version:
            self._last = (ref(tensor), tensor._version, compute())
        return self._last[2]


class ClipImages(nn.Module):
    """The image side of CLIP: vision transformer, projection and preprocessing."""

    def __init__(self, clip: Any, preprocess: Preprocess) -> None:
        super().__init__()
        self.vision_model = clip.vision_model
        self.visual_projection = clip.visual_projection
        self.preprocess = preprocess

    def image_embeds(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to unit vectors (B, D), float32; differentiable."""
        features = self.visual_projection(self.vision_model(self.preprocess(images)).pooler_output)
        return F.normalize(features.float(), dim=-1)


class ClipTower(ClipImages):
    """A whole CLIP model. Called with images and prompts, it gives their cosines (B,).

    Attributes:
        logit_scale: the trained factor exp(s) of the cosine.
    """

    def __init__(self, clip: CLIPModel, tokenizer: Tokenizer, preprocess: Preprocess) -> None:
        super().__init__(clip, preprocess)
        self.text_model = clip.text_model
        self.text_projection = clip.text_projection
        self.logit_scale: float = clip.logit_scale.float().exp().item()
        self.tokenizer = tokenizer
        self.last_images = LastResult()
        self._cached_text_embed = lru_cache(maxsize=CACHED_PROMPTS)(self._text_embed)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (self.image_embeds(images) * self.text_embeds(prompts)).sum(dim=-1)

    def text_embeds(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to unit vectors (B, D), float32; each distinct prompt is encoded once."""
        return torch.stack([self._cached_text_embed(prompt) for prompt in prompts])

    # A cached embedding outlives its caller's mode: it may take part in a gradient later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _text_embed(self, prompt: str) -> Tensor:
        """One prompt alone: nothing to pad, and the same bits whatever prompts it came with."""
        ids = torch.tensor([self.tokenizer(prompt)], device=self.text_projection.weight.device)
        features = self.text_projection(self.text_model(ids).pooler_output)
        return F.normalize(features[0].float(), dim=-1)


def clip_config(folder: Path) -> CLIPConfig:
    """The sizes of a model in the transformers format.

    Raises:
        UsageError: the folder has no config.json, or one of no model that could be built.
    """
    checkpoints.check_model(folder)  # without a config.json transformers would take the sizes of ViT-B/32
    return CLIPConfig.from_pretrained(folder)


def image_preprocess(config: SquareConfig, folder: Path, size: int) -> Preprocess:
    """Preprocessing of a model in ``folder`` with the options of ``config``."""
    return Preprocess(size, config.resize, config.interpolation, **channel_statistics(folder))


def assemble(
    clip: CLIPModel, config: SquareConfig, folder: Path, words: Path, clean: Callable[[str], str] = str
) -> ClipTower:
    """A model with its preprocessing from ``folder`` and its tokenizer from ``words``."""
    tokenizer = Tokenizer.load(words, clip.config.text_config.max_position_embeddings, clean)
    return ClipTower(clip, tokenizer, image_preprocess(config, folder, clip.config.vision_config.image_size))


def load_tower(config: ClipConfig) -> ClipTower:
    """The CLIP model, tokenizer and preprocessing that a config names, on the CPU."""
    folder = weights.model_folder(config.model, config.revision)
    clip = weights.from_folder(CLIPModel, clip_config(folder), folder, config.dtype)
    words = folder if has_tokenizer(folder) else checkpoints.resolve(config.tokenizer, patterns=SETTINGS)
    return assemble(clip, config, folder, words)


_shared: WeakValueDictionary[tuple[object, ...], ClipTower] = WeakValueDictionary()


def shared_tower(config: ClipConfig, device: torch.device) -> ClipTower:
    """``load_tower``, once for all rewards of this process that need the same weights on the same device."""
    key = (device, *(getattr(config, name) for name in ClipConfig.model_fields if name != "micro_batch"))
    tower = _shared.get(key)
    if tower is None:
        tower = _shared[key] = load_tower(config)
    return tower
