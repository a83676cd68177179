"""Shrunk networks on the released scheduler settings: the model card's call draws the run's image."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from released.test_released import HERE, KINDS, references
from sana.conftest import components
from sd.conftest import pipeline
from sd.test_sd_cards import drawn
from zimage.test_zimage import folder  # noqa: F401

from t2ialign_solvers.config import DiffusersConfig, OdeConfig, OneStepConfig
from t2ialign_solvers.one_step import OneStep
from t2ialign_solvers.scheduler import DiffusersScheduler
from t2ialign_solvers.single_step import Euler

EULER, ONE_STEP = Euler(OdeConfig(steps=4)), OneStep(OneStepConfig())


def stock(name: str) -> DiffusersScheduler:
    return DiffusersScheduler(DiffusersConfig(scheduler=name, steps=4))


#: kind -> (family of the shrunk networks, options, sampler).
CASES = {
    "sd15": ("sd", {}, stock("PNDMScheduler")),
    "sd-turbo": ("sd", {}, ONE_STEP),
    "sdxl": ("sdxl", {}, EULER),
    "sdxl-turbo": ("sdxl", {}, ONE_STEP),
    "hyper-sd": ("sdxl", {"network_file": "diffusion_pytorch_model.safetensors"}, ONE_STEP),
    "pixart-dmd": ("pixart", {"max_sequence_length": 16}, ONE_STEP),
    "pixart-sigma": ("pixart-sigma", {"max_sequence_length": 16}, stock("DPMSolverMultistepScheduler")),
    "sd3": ("sd3", {"max_sequence_length": 16}, EULER),
    "flux": ("flux", {"max_sequence_length": 16, "image_size": 32}, EULER),
    "flux2-klein": ("flux2-distilled", {"max_sequence_length": 16, "image_size": 32}, EULER),
    "qwen-image": ("qwen-image", {"image_size": 32, "guidance_scale": 1.0}, EULER),
    "sana": ("sana", {"image_size": 32}, stock("DPMSolverMultistepScheduler")),
    "sana-sprint": ("sana-sprint", {"image_size": 32}, ONE_STEP),
    "z-image": ("z-image", {"image_size": 32, "max_sequence_length": 32}, EULER),
}


def shrunk(kind, family, target, zimage):
    """A tiny checkpoint with the released scheduler."""
    import diffusers

    source = references(kind)[1] if kind == "pixart-dmd" else references(kind)[0]
    settings = HERE / source.replace("/", "--") / "scheduler" / "scheduler_config.json"
    name = json.loads(settings.read_text())["_class_name"]
    scheduler = getattr(diffusers, name).from_config(json.loads(settings.read_text()))
    torch.manual_seed(0)
    if family == "z-image":
        shutil.copytree(zimage, target)
    elif family.startswith("sana"):
        made = diffusers.SanaSprintPipeline if family == "sana-sprint" else diffusers.SanaPipeline
        made(**components(family == "sana-sprint"), scheduler=scheduler).save_pretrained(target)
    else:
        pipeline(family, scheduler).save_pretrained(target)
    shutil.copyfile(settings, target / "scheduler" / "scheduler_config.json")


def test_every_diffusers_backend_has_a_case():
    assert CASES.keys() == KINDS.keys() - {"var", "infinity"}  # those sample by themselves


@pytest.mark.parametrize("kind", CASES)
def test_the_card_draws_the_run_s_image_on_the_released_scheduler(kind, tmp_path, monkeypatch, folder):  # noqa: F811
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path / "cache"))
    family, options, sampler = CASES[kind]
    target = tmp_path / "checkpoint"
    shrunk(kind, family, target, folder)
    options = {"checkpoint": str(target), "dtype": "float32"} | options
    if kind in ("hyper-sd", "pixart-dmd"):
        options["network_checkpoint"] = str(target / "unet" if kind == "hyper-sd" else target)
    backend = KINDS[kind].load()(KINDS[kind].config(**options))
    ours, card = drawn(backend, sampler, tmp_path, monkeypatch)
    assert ours.std() > 0.01
    assert (ours - card).abs().max() < 1e-4
