"""The code on a model card, as it is printed, draws the run's image."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from sd.cases import CASES, make

from t2ialign import LoraConfig, seeding
from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_lora
from t2ialign_sd.flux import Flux
from t2ialign_solvers.config import DdimConfig, DiffusersConfig, OdeConfig
from t2ialign_solvers.ddim import Ddim
from t2ialign_solvers.scheduler import DiffusersScheduler
from t2ialign_solvers.single_step import Dpm2, Euler


def drawn(backend, sampler, folder, monkeypatch):
    """The run's image and the card's, both from one noise, in [0, 1]."""
    adapter = Adapter(backend.trainable, LoraConfig(rank=1), backend.config.lora_targets())
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.1 * seeding.normal([i], parameter.shape)[0])
    write_lora(adapter, backend.info.adapter_prefix, folder / "pytorch_lora_weights.safetensors")
    prompt = "a red circle"
    images = backend.generate(backend.encode([prompt]), [3], sampler)
    latents = backend.noise([3])
    if isinstance(backend, Flux):
        latents = diffusers.FluxPipeline._pack_latents(latents, *latents.shape)
    code = backend.snippet(sampler)
    assert '    "a prompt",\n' in code
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"noise": latents}
    exec(code.replace('    "a prompt",\n', f'    "{prompt}", latents=noise, output_type="pt",\n'), names)
    return images[0], names["image"]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", CASES)
def test_the_card_draws_the_image_of_the_run(name, guidance, build, tmp_path, monkeypatch):
    case = CASES[name]
    if guidance > 1 and case.options.get("guidance_scale") is None and "turbo" in name:
        pytest.skip("distilled without guidance")
    backend = make(case, build, guidance_scale=guidance)
    ours, card = drawn(backend, case.sampler, tmp_path, monkeypatch)
    assert (ours - card).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("sd15-dpmpp-2m", Euler(OdeConfig(steps=4))),
        ("sd15-heun", Ddim(DdimConfig(steps=4))),
        ("sd15-ddim", Euler(OdeConfig(steps=4))),
        ("sd15-euler", DiffusersScheduler(DiffusersConfig(scheduler="DPMSolverMultistepScheduler", steps=4))),
    ],
)
def test_the_card_has_the_sampler_of_the_run(name, sampler, build, tmp_path, monkeypatch):
    backend = make(CASES[name], build)
    assert "pipe.scheduler = " in backend.snippet(sampler) or name == "sd15-ddim"
    ours, card = drawn(backend, sampler, tmp_path, monkeypatch)
    assert (ours - card).abs().max() < (3e-3 if "dpmpp" in name else 1e-4)  # the two classes round the grid differently


def test_a_sampler_that_diffusers_does_not_have_is_told(build):
    backend = make(CASES["sd15-ddim"], build)
    assert "# diffusers has no scheduler like the run's Dpm2" in backend.snippet(Dpm2(Dpm2.Config(steps=7)))
    assert "num_inference_steps=7" in backend.snippet(Dpm2(Dpm2.Config(steps=7)))


def test_flux_dev_and_schnell_are_told_apart_by_the_checkpoint(build):
    sampler = Euler(OdeConfig(steps=28))
    dev = make(CASES["flux-dev"], build, max_sequence_length=None).snippet(sampler)
    assert "num_inference_steps=28" in dev
    assert "max_sequence_length=512" in dev
    assert "guidance_scale=2.0" in dev
    schnell = make(CASES["flux-schnell"], build, max_sequence_length=None).snippet(sampler)
    assert "max_sequence_length=256" in schnell
    assert "guidance" not in schnell
