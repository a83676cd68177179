"""The code on a model card, as it is printed, draws the run's image."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from cards import drawn, drawn_from_a_file
from safetensors.torch import load_file, save_file
from sd.cases import CASES, make

from t2ialign import LoraConfig, UsageError, seeding
from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_lora
from t2ialign_solvers.config import DdimConfig, DiffusersConfig, OdeConfig
from t2ialign_solvers.ddim import Ddim
from t2ialign_solvers.scheduler import DiffusersScheduler
from t2ialign_solvers.single_step import Dpm2, Euler


@pytest.mark.parametrize(("guidance", "size"), [(1.0, 32), (4.0, [24, 32])])
@pytest.mark.parametrize("name", CASES)
def test_the_card_draws_the_image_of_the_run(name, guidance, size, build, tmp_path, monkeypatch):
    case = CASES[name]
    if case.options.get("guidance_scale") is None and "turbo" in name:
        guidance = 1.0  # distilled without
    backend = make(case, build, guidance_scale=guidance, image_size=size)
    ours, card = drawn(backend, case.sampler, tmp_path, monkeypatch)
    assert (ours - card).abs().max() < 1e-4


@pytest.mark.parametrize(("guidance", "size"), [(1.0, [32, 24]), (4.0, 32)])
@pytest.mark.parametrize("name", ["sd3-dynamic-shift", "flux-dev", "flux2-klein-base", "qwen-image"])
def test_so_it_does_where_the_time_grid_follows_the_size(name, guidance, size, build, tmp_path, monkeypatch):
    backend = make(CASES[name], build, guidance_scale=guidance, image_size=size)
    ours, card = drawn(backend, CASES[name].sampler, tmp_path, monkeypatch)
    assert (ours - card).abs().max() < 1e-4


def test_pixart_of_1024_pixels_is_told_the_size(build, tmp_path, monkeypatch):
    case = replace(CASES["pixart-dmd"], family="pixart-1024")
    backend = make(case, build, guidance_scale=2.0, image_size=[24, 40])
    ours, card = drawn(backend, case.sampler, tmp_path, monkeypatch)
    assert (ours - card).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["sdxl-negative", "pixart-dmd", "sd3", "flux-dev", "flux2-klein", "qwen-image"])
def test_a_file_of_noise_draws_the_image_of_the_run(name, build, tmp_path, monkeypatch):
    ours, printed = drawn_from_a_file(make(CASES[name], build), CASES[name].sampler, tmp_path, monkeypatch)
    assert ours.shape == (24, 32, 3)
    assert np.abs(ours - printed).max() <= 1


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


def test_a_card_merges_what_the_run_merged(build, tmp_path, monkeypatch):
    case = CASES["sd15-ddim"]
    plain = make(case, build)
    adapter = Adapter(plain.trainable, LoraConfig(rank=1), ["to_q", "to_v"])
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.3 * seeding.normal([7 + i], parameter.shape)[0])
    (tmp_path / "style").mkdir()
    write_lora(adapter, "unet", tmp_path / "style" / "pytorch_lora_weights.safetensors")
    backend = make(case, build, base_lora=[{"path": str(tmp_path / "style"), "weight": 0.5}])
    ours, card = drawn(backend, case.sampler, tmp_path, monkeypatch)
    assert (ours - card).abs().max() < 1e-4
    without = make(case, build).generate(plain.encode(["a red circle"]), [3], case.sampler)
    assert (ours - without[0]).abs().max() > 1e-2


def test_a_network_whose_files_lack_tensors_is_refused_by_name(build, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(build(CASES["sd15-ddim"].family, CASES["sd15-ddim"].scheduler), folder)
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "conv_out.bias"}, file)
    backend = make(CASES["sd15-ddim"], build, checkpoint=str(folder))
    with pytest.raises(UsageError, match=r"unet lack 1 tensors that unet/config.json asks for: conv_out.bias"):
        _ = backend.trainable
