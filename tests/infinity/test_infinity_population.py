"""EGGROLL on Infinity: packed text tokens and the doubled batch of guidance reach their own member's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t2ialign import LoraConfig, UsageError
from t2ialign.lora import adapter as lora
from t2ialign_infinity import text
from t2ialign_infinity.backend import InfinityBackend

pytest.importorskip("t2ialign_eggroll")
from t2ialign_eggroll.noise import Members, Noise
from t2ialign_eggroll.population import Chunk, lora_population

PROMPTS = ["a red fox in the snow", "two cats"]  # of different lengths: the packed axis has no batch structure


def perturbed(backend: InfinityBackend, targets: list[str], members: int) -> tuple[lora.Adapter, dict[str, Any]]:
    adapter = lora.Adapter(backend.trainable, LoraConfig(rank=2), targets)
    shapes = {name: p.shape for name, p in adapter.parameters().items()}
    drawn = Members(members).draw(Noise(shapes, 1).of(0, 0), slice(0, members))
    sigma = torch.full((members,), 0.3)
    return adapter, {name: e.select(torch.arange(members), sigma) for name, e in drawn.items()}


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize(
    "targets", [["mat_kv", "text_proj_for_ca.0"], ["mat_qkv", "mat_q", "proj", "fc1", "fc2", "head"]]
)
@torch.no_grad()
def test_a_batched_population_equals_its_members_one_by_one(config: Any, targets: list[str], guidance: float) -> None:
    backend = InfinityBackend(config(guidance_scale=guidance))
    adapter, noise = perturbed(backend, targets, members=3)
    factors = adapter.parameters()
    conditioning, seeds = backend.encode(PROMPTS), [5, 6]
    base = backend.generate(conditioning, seeds)
    with lora_population(adapter.layers, noise, Chunk(3, 2), "auto"):
        batched = backend.generate(conditioning[[0, 1] * 3], seeds * 3)
    for member in range(3):
        kept = {name: p.clone() for name, p in factors.items()}
        for name, p in factors.items():
            p.copy_(kept[name] + noise[name].dense()[member])
        single = backend.generate(conditioning, seeds)
        for name, p in factors.items():
            p.copy_(kept[name])
        torch.testing.assert_close(batched[2 * member : 2 * member + 2], single, rtol=0, atol=1e-4)
        assert not torch.allclose(single, base)


def test_packed_tokens_that_nobody_announces_are_refused(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the test above honest: without the announcement the population cannot know whose tokens it sees."""
    monkeypatch.setattr(text.PackedText, "through", lambda self, layer, tokens: layer(tokens))
    backend = InfinityBackend(config(guidance_scale=1.0))
    adapter, noise = perturbed(backend, ["mat_kv"], members=3)
    with (
        lora_population(adapter.layers, noise, Chunk(3, 2), "auto"),
        pytest.raises(UsageError, match="rows cannot be assigned to members"),
    ):
        backend.generate(backend.encode(["grass", "two cats"])[[0, 1] * 3], [5, 6] * 3)
