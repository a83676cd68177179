"""Rewards that are a cosine in CLIP space: PickScore, and CLIPScore in all its definitions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t2ialign_rewards.clip import ClipTower, shared_tower
from t2ialign_rewards.config import ClipScoreConfig, PickScoreConfig
from t2ialign_rewards.network_reward import NetworkReward


class ClipCosine(NetworkReward):
    """Cosine of image and prompt. Rewards that share a tower share its image embeddings, too."""

    def load(self) -> ClipTower:
        return shared_tower(self.config, self.device)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.config.offload or (images.requires_grad and torch.is_grad_enabled()):
            return super().score(images, prompts)  # a shared graph could be freed by another reward's backward pass
        tower: ClipTower = self.network
        embeds = tower.last_images.recall(images, lambda: self._embed(images.to(self.device)))
        return (embeds * tower.text_embeds(prompts)).sum(dim=-1)

    def _embed(self, images: Tensor) -> Tensor:
        return self._in_micro_batches(lambda rows: self.network.image_embeds(images[rows]), len(images))


class PickScore(ClipCosine):
    """PickScore (Kirstain et al. 2023): exp(logit_scale) * cos of a CLIP tuned on human choices; about 17 to 24."""

    Config = PickScoreConfig

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.network.logit_scale * super().score(images, prompts)


class ClipScore(ClipCosine):
    """max(scale * cos + offset, minimum) with the prompt or a fixed text: CLIPScore in every definition in use."""

    Config = ClipScoreConfig

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        config = self.config
        texts = prompts if config.text is None else [config.text] * len(images)
        scale = self.network.logit_scale if config.scale == "logit" else config.scale
        scores = scale * super().score(images, texts) + config.offset
        return scores if config.minimum is None else scores.clamp(min=config.minimum)
