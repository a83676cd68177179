"""MPS, the multi-dimensional preference score (Zhang et al. 2024), with its public "overall" weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from t2ialign import checkpoints
from t2ialign_rewards import weights
from t2ialign_rewards.clip import SETTINGS, clip_config, image_preprocess
from t2ialign_rewards.config import MpsConfig
from t2ialign_rewards.mps_cross import CrossModel
from t2ialign_rewards.network_reward import NetworkReward
from t2ialign_rewards.preprocess import Preprocess
from t2ialign_rewards.text import Tokenizer

FILES = ("MPS_overall.safetensors", "model.safetensors")
#: A prompt's tokens take 0.3 MB at ViT-H size.
CACHED_PROMPTS = 512


class EncodedText(NamedTuple):
    """One prompt: all projected tokens (L, D), the pooled one (D,), and the attention bias (L,)."""

    tokens: Tensor
    pooled: Tensor
    bias: Tensor


def relevance_bias(relevance: Tensor, threshold: float) -> Tensor:
    """0 for text tokens that matter to the condition, -inf for the others.

    Relative to each prompt's own most relevant token; the authors' code takes the maximum over the batch, which is
    the same for one prompt. Where no token has a positive relevance the ratio means nothing, and all are kept.

    Args:
        relevance: (..., L), the largest inner product of each token with any token of the condition.
    """
    most = relevance.amax(dim=-1, keepdim=True)
    kept = (relevance / most > threshold) | (most <= 0)
    return torch.zeros_like(relevance).masked_fill(~kept, -torch.inf)


class MpsNetwork(nn.Module):
    """Images and prompts to exp(logit_scale) * cos (B,)."""

    def __init__(
        self,
        clip: CLIPModel,
        cross: CrossModel,
        tokenizer: Callable[[str], list[int]],
        preprocess: Preprocess,
        condition: str,
        threshold: float,
    ) -> None:
        super().__init__()
        self.clip, self.cross = clip, cross
        self.tokenizer, self.preprocess = tokenizer, preprocess
        self.condition, self.threshold = condition, threshold
        self._cached_encode = lru_cache(maxsize=CACHED_PROMPTS)(self._encode)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens, pooled, bias = map(torch.stack, zip(*map(self._cached_encode, prompts), strict=True))
        seen = self.cross(self.image_tokens(images), tokens, bias)[:, 0]
        return self.clip.logit_scale.float().exp() * F.cosine_similarity(pooled.float(), seen.float(), dim=-1)

    def image_tokens(self, images: Tensor) -> Tensor:
        """All vision tokens (B, N, D), projected without the last layer norm."""
        hidden = self.clip.vision_model(self.preprocess(images)).last_hidden_state
        return self.clip.visual_projection(hidden)

    def text_tokens(self, text: str) -> tuple[Tensor, Tensor]:
        """Projected tokens (L, D), padded with the end token that others may look at, and the pooled token (D,)."""
        ids = self.tokenizer(text)
        ids = ids + ids[-1:] * (self.clip.config.text_config.max_position_embeddings - len(ids))
        output = self.clip.text_model(torch.tensor([ids], device=self.clip.text_projection.weight.device))
        project = self.clip.text_projection
        return project(output.last_hidden_state)[0], project(output.pooler_output)[0]

    @cached_property
    def _condition_tokens(self) -> Tensor:
        return self.text_tokens(self.condition)[0]

    # A cached encoding outlives its caller's mode: it may take part in a gradient later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, prompt: str) -> EncodedText:
        tokens, pooled = self.text_tokens(prompt)
        relevance = (tokens.float() @ self._condition_tokens.float().T).amax(dim=-1)
        return EncodedText(tokens, pooled, relevance_bias(relevance, self.threshold))


class Mps(NetworkReward):
    """MPS, overall preference: exp(logit_scale) * cos of the prompt and the image as seen with the prompt."""

    Config = MpsConfig

    def load(self) -> MpsNetwork:
        config: MpsConfig = self.config
        file = weights.find_file(config.checkpoint, config.revision, FILES)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "cross_model": {}}
        for key, value in weights.read_tensors(file).items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = value
        weights.require_keys(str(file), (), parts.keys() - {"model", "cross_model"})
        base = checkpoints.resolve(config.base, patterns=SETTINGS)
        clip = weights.from_state(CLIPModel, clip_config(base), parts["model"], config.dtype, str(file))
        cross = CrossModel.from_state(parts["cross_model"], str(file)).to(getattr(torch, config.dtype))
        tokenizer = Tokenizer.load(base, clip.config.text_config.max_position_embeddings)
        preprocess = image_preprocess(config, base, clip.config.vision_config.image_size)
        return MpsNetwork(clip, cross, tokenizer, preprocess, config.condition, config.threshold)
