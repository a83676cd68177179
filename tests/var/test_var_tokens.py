"""Tokens and their log-probabilities: what learning sees is what sampling did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from t2ialign import UsageError
from t2ialign.lora.adapter import Adapter
from t2ialign_var.backend import VarBackend
from t2ialign_var.config import VarConfig
from t2ialign_var.sampling import DrawTokens, sample_features

SEEDS = [0, 1, 2]


def guided(checkpoint: Path, **options: Any) -> VarBackend:
    return VarBackend(VarConfig(checkpoint=str(checkpoint), dtype="float32", top_k=5, **options))


@pytest.mark.parametrize("with_guidance", [False, True])
def test_log_probs_are_those_that_cached_sampling_had(checkpoint: Path, with_guidance: bool) -> None:
    backend = guided(checkpoint)
    conditioning, quantiser = backend.encode(["ant", "bee", "ant"]), backend.vqvae.quantize
    images, tokens = backend.draw_tokens(conditioning, SEEDS, guided=with_guidance)
    strength = backend.config.guidance_scale if with_guidance else 0.0
    seen = []
    draws = DrawTokens(quantiser, backend.noise(SEEDS), 0, 1.0)

    def choose(scale: int, logits: torch.Tensor) -> torch.Tensor:
        chosen = draws.tokens(scale, logits)
        seen.append(logits.log_softmax(-1).gather(-1, chosen[..., None]).squeeze(-1))
        return quantiser.embedding(chosen)

    features = sample_features(backend.transformer, quantiser, conditioning.tensors["class_id"], strength, choose)
    torch.testing.assert_close(backend.vqvae.decode(features), images)
    found = backend.log_prob(conditioning, tokens, with_guidance)
    torch.testing.assert_close(found, torch.cat(seen, 1), rtol=0, atol=1e-4)
    assert torch.allclose(found, backend.log_prob(conditioning, tokens)) is not with_guidance


def test_images_of_the_run_s_own_sampling_have_tokens(checkpoint: Path) -> None:
    backend = guided(checkpoint)
    conditioning = backend.encode(["ant", "bee", "ant"])
    images, tokens = backend.draw_tokens(conditioning, SEEDS, plain=False)
    assert torch.equal(images, backend.generate(conditioning, SEEDS))
    features, _ = backend.vqvae.quantize.unroll(tokens)
    torch.testing.assert_close(backend.vqvae.decode(features), images, rtol=0, atol=1e-5)


def test_the_first_scales_have_the_same_log_probs_alone(checkpoint: Path) -> None:
    backend = guided(checkpoint)
    conditioning = backend.encode(["ant", "bee", "ant"])
    _, tokens = backend.draw_tokens(conditioning, SEEDS)
    whole = backend.log_prob(conditioning, tokens)
    for scales in range(1, len(backend.transformer.tokens)):
        count = int((backend.scale_of < scales).sum())
        prefix = backend.log_prob(conditioning, tokens[:, :count])
        torch.testing.assert_close(prefix, whole[:, :count], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="2 tokens are not those of whole scales"):
        backend.log_prob(conditioning, tokens[:, :2])


def test_log_probs_have_gradients_in_every_target(checkpoint: Path) -> None:
    backend = guided(checkpoint)
    adapter = Adapter(backend.trainable, backend.config.lora, backend.config.lora_targets())
    conditioning = backend.encode(["ant", "bee", "ant"])
    _, tokens = backend.draw_tokens(conditioning, SEEDS)
    backend.log_prob(conditioning, tokens).sum().backward()
    for name, parameter in adapter.parameters().items():
        if name.endswith("lora_B.weight"):
            assert parameter.grad is not None and bool((parameter.grad != 0).any()), name  # noqa: PT018


def test_mixed_codes_have_no_tokens(checkpoint: Path) -> None:
    backend = guided(checkpoint, more_smooth=True)
    with pytest.raises(UsageError, match="more_smooth"):
        backend.draw_tokens(backend.encode(["ant"]), [0])
