"""Text encoders load once a run, and what they gave waits on the CPU."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from sd.cases import CASES, PROMPTS, make

from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec.parse import parse
from t2ialign_diffusers.backend import DiffusersBackend


@pytest.fixture
def loads(monkeypatch):
    """Names of the models of every pipeline that is loaded."""
    found = []
    load = DiffusersBackend._load

    def watched(self, *args, **options):
        pipe = load(self, *args, **options)
        found.append({name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)})
        return pipe

    monkeypatch.setattr(DiffusersBackend, "_load", watched)
    return found


@pytest.mark.parametrize("cache", ["empty", "not writable"])
def test_a_whole_run_loads_the_text_encoder_once(build, loads, tmp_path, monkeypatch, cache):
    """Training, grids, export, its check and evaluation on other prompts."""
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path / "cache") if cache == "empty" else "/proc/no/cache")
    case = CASES["sd15-ddim"]
    (tmp_path / "train.txt").write_text("a red circle\na blue square\na red circle\n")
    (tmp_path / "held-out.txt").write_text("a green circle\na blue square\na red square above a circle\n")
    tree = {
        "run": {"steps": 1, "device": "cpu", "out": str(tmp_path / "runs"), "name": "run"},
        "backend": {
            "kind": "sd15",
            "checkpoint": str(build(case.family, case.scheduler)),
            "dtype": "float32",
            "guidance_scale": 3.0,
        },
        "sampler": {"kind": "ddim", "steps": 2},
        "optimizer": {"kind": "eggroll", "population": 2},
        "reward": [{"kind": "jpeg-compressibility"}],
        "prompts": {"file": "train.txt", "per_step": 2},
        "evaluation": {"prompts": "held-out.txt"},
    }
    run = runner.start(parse(tree, "spec.toml", tmp_path), Display(quiet=True))
    assert loads == [{"text_encoder"}, {"unet", "vae"}]
    summary = json.loads((run.path / "evaluation" / "summary.json").read_text())
    assert summary["prompts"] == 3


def test_a_card_names_no_place_of_this_machine(build, tmp_path):
    """A local checkpoint is no base_model, whatever its name would do to the card's head."""
    case = CASES["sd15-ddim"]
    shutil.copytree(build(case.family, case.scheduler), tmp_path / 'my model #1: "new"')
    (tmp_path / "train.txt").write_text("a red circle\n")
    tree = {
        "run": {"steps": 1, "device": "cpu", "out": str(tmp_path / "runs"), "name": "run"},
        "backend": {"kind": "sd15", "checkpoint": str(tmp_path / 'my model #1: "new"'), "dtype": "float32"},
        "sampler": {"kind": "ddim", "steps": 2},
        "optimizer": {"kind": "eggroll", "population": 2},
        "reward": [{"kind": "jpeg-compressibility"}],
        "prompts": {"file": "train.txt", "per_step": 1},
        "export": {"formats": ["diffusers", "kohya", "peft"]},
    }
    run = runner.start(parse(tree, "spec.toml", tmp_path), Display(quiet=True))
    card = (run.path / "export" / "README.md").read_text()
    assert "base_model" not in card
    assert "my model #1" in card
    assert "num_inference_steps=2" in card
    for file in (run.path / "export").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes(), file


@pytest.mark.parametrize("name", ["sd15-ddim", "sdxl", "pixart-dmd", "sd3", "flux-dev"])
def test_encodings_wait_on_the_cpu_and_go_to_the_device_by_batch(name, build, loads):
    """On the device that holds nothing, so that whatever goes there is seen to."""
    backend = make(CASES[name], build)
    backend.encode(PROMPTS)
    loads.clear()
    conditioning = backend.encode(PROMPTS)
    assert loads == []  # the cache has them
    backend.device = torch.device("meta")
    bound = backend.denoiser(conditioning[[0, 1]]).conditioning
    assert {tensor.device.type for tensor in bound.tensors.values()} == {"meta"}
    assert {tensor.device.type for tensor in conditioning.tensors.values()} == {"cpu"}
    assert len(bound) == 2
