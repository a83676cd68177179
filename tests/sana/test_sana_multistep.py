"""Multi-step Sana against the stock pipeline."""

from __future__ import annotations

import math

import pytest
import torch
from cards import drawn, drawn_from_a_file
from diffusers import SanaPipeline

from t2ialign import LoraConfig, seeding
from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_lora
from t2ialign_sana.config import SanaConfig
from t2ialign_sana.sana import Sana
from t2ialign_solvers.config import OdeConfig
from t2ialign_solvers.single_step import Euler

PROMPTS = ["a red circle", "A blue square and a green circle"]
SAMPLER = Euler(OdeConfig(steps=4))


@pytest.fixture
def make(sana_folder):
    def build(**options):
        options = {"checkpoint": str(sana_folder), "dtype": "float32", "image_size": 32} | options
        return Sana(SanaConfig(**options))

    return build


@pytest.fixture(scope="module")
def stock(sana_folder):
    pipe = SanaPipeline.from_pretrained(sana_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("negative", [None, "a green square"])
@pytest.mark.parametrize("instruction", [True, False])
def test_the_card_draws_the_image_of_the_run(make, tmp_path, monkeypatch, instruction, guidance, negative):
    options = {"guidance_scale": guidance, "negative_prompt": negative, "complex_human_instruction": instruction}
    size = 32 if guidance == 1 else [64, 32]
    ours, card = drawn(make(**options, image_size=size), SAMPLER, tmp_path, monkeypatch)
    assert (ours - card).abs().max() < 1e-4


def test_a_file_of_noise_draws_the_image_of_the_run(make, tmp_path, monkeypatch):
    ours, printed = drawn_from_a_file(make(image_size=[32, 64]), SAMPLER, tmp_path, monkeypatch)
    assert ours.shape == (32, 64, 3)
    assert abs(ours - printed).max() <= 1


@pytest.mark.parametrize(
    ("instruction", "guidance", "negative", "size"),
    [(True, 4.5, None, 32), (False, 3.0, "a green square", [32, 64]), (True, 1.0, None, [64, 32])],
)
def test_image_equals_the_stock_pipeline(make, stock, instruction, guidance, negative, size):
    options = {"guidance_scale": guidance, "negative_prompt": negative, "image_size": size}
    backend = make(complex_human_instruction=instruction, **options)
    images = backend.generate(backend.encode(PROMPTS), [5, 6], SAMPLER)
    options = {} if instruction else {"complex_human_instruction": None}
    expected = stock(
        list(PROMPTS),
        negative_prompt=negative or "",
        latents=backend.noise([5, 6]),
        num_inference_steps=4,
        guidance_scale=guidance,
        height=backend.info.image_size[0],
        width=backend.info.image_size[1],
        use_resolution_binning=False,
        max_sequence_length=16,
        output_type="pt",
        **options,
    ).images
    assert (images - expected).abs().max() < 1e-5


def test_images_do_not_depend_on_batch_or_order(make):
    backend = make()
    conditioning = backend.encode(PROMPTS)
    whole = backend.generate(conditioning, [1, 2], SAMPLER)
    single = [backend.generate(conditioning[[i]], [i + 1], SAMPLER) for i in (1, 0)]
    assert (torch.cat(single) - whole.flip(0)).abs().max() < 1e-5


def test_gradients_reach_the_noise(make):
    backend = make(guidance_scale=1.5)  # more would make the tiny random network too steep for finite differences
    conditioning = backend.encode(PROMPTS[:1])
    noise = backend.noise([0]).requires_grad_(True)
    weight = seeding.normal([1], (3, 32, 32))

    def value(latents):
        return (backend.generate(conditioning, [0], SAMPLER, noise=latents).double() * weight).sum()

    (gradient,) = torch.autograd.grad(value(noise), noise)
    direction, step = gradient / gradient.norm(), 2e-4
    with torch.no_grad():
        slope = (value(noise + step * direction) - value(noise - step * direction)) / (2 * step)
    assert math.isclose(slope, gradient.norm(), rel_tol=2e-2)


def test_lora_file_gives_the_tuned_images(make, tmp_path):
    backend = make()
    conditioning = backend.encode(PROMPTS)
    base = backend.generate(conditioning, [1, 2], SAMPLER)
    adapter = Adapter(backend.trainable, LoraConfig(rank=2, alpha=6), backend.config.lora_targets())
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.1 * seeding.normal([i], parameter.shape)[0])
    tuned = backend.generate(conditioning, [1, 2], SAMPLER)
    assert (tuned - base).abs().max() > 1e-2
    write_lora(adapter, "transformer", tmp_path / "pytorch_lora_weights.safetensors")
    fresh = make()
    fresh.load_lora(tmp_path)
    assert (fresh.generate(conditioning, [1, 2], SAMPLER) - tuned).abs().max() < 1e-4


def test_network_loads_after_both_encodings(make, monkeypatch):
    backend = make()
    encode_batch = Sana.encode_batch
    seen = []

    def watched(self, pipeline, prompts):
        seen.append((prompts, "pipeline" in backend.__dict__))
        return encode_batch(self, pipeline, prompts)

    monkeypatch.setattr(Sana, "encode_batch", watched)
    backend.generate(backend.encode(PROMPTS), [1, 2], SAMPLER)
    assert seen == [([""], False), (PROMPTS, False)]


def test_prompts_and_the_plain_negative_prompt_share_one_loading(make, monkeypatch):
    loads = []
    load = Sana._load
    monkeypatch.setattr(Sana, "_load", lambda self, *a, **o: loads.append(a) or load(self, *a, **o))
    backend = make(guidance_scale=4.5)
    backend.encode(PROMPTS)
    assert len(loads) == 1
    backend.generate(backend.encode(PROMPTS), [5, 6], SAMPLER)
    assert len(loads) == 2  # the second one is the network's
