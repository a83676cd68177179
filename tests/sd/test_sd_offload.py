"""Offloaded weights, for every family of networks. No GPU is needed: see the fixture ``shelved``."""

from __future__ import annotations

import pytest
import torch
from sd.cases import CASES, PROMPTS, SEEDS, make

from t2ialign import LoraConfig, seeding
from t2ialign.lora.adapter import Adapter

each = pytest.mark.parametrize("name", ["sd15-ddim", "sdxl", "pixart-dmd", "sd3", "flux-dev"])


def tuned(backend):
    """The backend with a LoRA that shows."""
    adapter = Adapter(backend.trainable, LoraConfig(rank=2), backend.config.lora_targets())
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.3 * seeding.normal([i], parameter.shape)[0])
    return backend, adapter


@pytest.mark.parametrize("offload", ["model", "blocks"])
@each
def test_images_stay_the_same_and_one_unit_is_on_the_device(name, offload, build, shelved):
    case = CASES[name]
    plain, _ = tuned(make(case, build))
    conditioning = plain.encode(PROMPTS)
    backend, _ = tuned(make(case, build, offload=offload))
    expected = plain.generate(conditioning, SEEDS, case.sampler)
    assert torch.equal(backend.generate(conditioning, SEEDS, case.sampler), expected)
    assert torch.equal(backend.generate(conditioning, SEEDS, case.sampler), expected)
    network, decoder = (
        sum(p.numel() for n, p in part.named_parameters() if "lora_" not in n)
        for part in (plain.trainable, plain.pipeline.vae.decoder)
    )
    if offload == "model":  # two batches; the last decoder is still there
        assert shelved == [network, decoder, network]
    else:
        assert max(shelved) < 0.7 * network


@each
def test_gradients_of_blocks_that_are_fetched_twice(name, build, shelved):
    case = CASES[name]
    weight = seeding.normal([1], (3, *make(case, build).info.image_size))
    found = []
    for options in ({}, {"offload": "blocks", "gradient_checkpointing": ["network", "decoder"]}):
        backend, adapter = tuned(make(case, build, **options))
        noise = backend.noise([0]).requires_grad_(True)
        images = backend.generate(backend.encode(PROMPTS[:1]), [0], case.sampler, noise=noise)
        found.append(torch.autograd.grad((images * weight).sum(), [noise, *adapter.parameters().values()]))
    assert found[0][0].norm() > 0.01
    for plain, offloaded in zip(*found, strict=True):
        torch.testing.assert_close(offloaded, plain)


def test_encoding_frees_the_device_and_generation_goes_on(build, shelved):
    case = CASES["sd15-ddim"]
    backend = make(case, build, offload="blocks")
    images = backend.generate(backend.encode(PROMPTS), SEEDS, case.sampler)
    with backend.parked():
        assert backend.turns.fetched == []
    assert torch.equal(backend.generate(backend.encode(PROMPTS), SEEDS, case.sampler), images)
