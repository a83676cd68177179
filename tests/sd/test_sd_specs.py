"""Which samplers fit which model, as a spec's validation says it: before any weight is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from sd.cases import CASES

from t2ialign import SpecError, UsageError
from t2ialign.spec.parse import parse
from t2ialign_sd.config import Sd15Config
from t2ialign_sd.unet import StableDiffusion

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
NEEDED = {"epd": {"steps": 4}, "diffusers": {"scheduler": "UniPCMultistepScheduler"}}


def spec_of(backend, sampler, tmp_path, table=None, **options):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    tree = {
        "backend": {"kind": backend, **(table or {})},
        "sampler": {"kind": sampler, **options},
        "optimizer": {"kind": "eggroll"},
        "reward": [{"kind": "jpeg-compressibility"}],
        "prompts": {"file": "prompts.txt"},
    }
    return parse(tree, "spec.toml", tmp_path)


@pytest.mark.parametrize("backend", ["sd15", "sdxl", "sd3", "sana", "z-image"])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpm2", "ipndm", "dpmpp-2m", "epd", "diffusers", "scm"])
def test_multi_step_models_take_every_multi_step_sampler(backend, sampler, tmp_path):
    options = NEEDED.get(sampler, {})
    if sampler == "diffusers" and backend in ("sd3", "z-image"):
        options = options | {"options": FLOW}
    assert spec_of(backend, sampler, tmp_path, **options).backend.kind == backend


@pytest.mark.parametrize("backend", ["sd15", "sdxl", "sd3", "sana", "z-image"])
@pytest.mark.parametrize(("sampler", "options"), [("one-step", {}), ("scm", {"steps": 1})])
def test_one_step_from_a_multi_step_model_is_refused(backend, sampler, options, tmp_path):
    with pytest.raises(SpecError) as caught:
        spec_of(backend, sampler, tmp_path, **options)
    assert f"backend '{backend}'" in str(caught.value)
    assert "'one-step'" in str(caught.value)
    assert "sd-turbo" in str(caught.value)  # a backend that would fit


@pytest.mark.parametrize("backend", ["hyper-sd", "pixart-dmd"])
def test_many_steps_of_a_one_step_model_are_refused(backend, tmp_path):
    assert spec_of(backend, "one-step", tmp_path).sampler.kind == "one-step"
    with pytest.raises(SpecError, match="'multi-step'"):
        spec_of(backend, "heun", tmp_path)


def test_hyperscalees_sampler_is_for_sana_sprint_only(tmp_path):
    assert spec_of("sana-sprint", "sana-upstream-one-step", tmp_path)
    with pytest.raises(SpecError, match="'trigflow'"):
        spec_of("sd-turbo", "sana-upstream-one-step", tmp_path)


def test_an_unknown_dtype_is_refused(tmp_path):
    tree = {"backend": {"kind": "sd15", "dtype": "float8"}, "sampler": {"kind": "ddim"}}
    with pytest.raises(SpecError, match=r"backend\.dtype = \"float8\""):
        parse(tree, "spec.toml", tmp_path)


@pytest.mark.parametrize(
    ("backend", "sampler", "size", "says"),
    [
        ("sd15", "ddim", [516, 768], "multiples of 8; nearest: [512, 768]"),
        ("sdxl", "euler", 1020, "multiples of 8; nearest: 1024"),
        ("sd3", "euler", [1016, 768], "multiples of 16; nearest: [1024, 768]"),
        ("flux", "euler", [1024, 1016], "multiples of 16; nearest: 1024"),
        ("pixart-dmd", "one-step", [512, 520], "multiples of 16; nearest: 512"),
        ("sana", "euler", [1024, 1000], "multiples of 32; nearest: [1024, 992]"),
        ("sana-sprint", "one-step", 1000, "multiples of 32; nearest: 992"),
        ("z-image", "euler", [1000, 1024], "multiples of 16; nearest: [992, 1024]"),
    ],
)
def test_sizes_that_a_released_model_cannot_draw_are_refused(backend, sampler, size, says, tmp_path):
    with pytest.raises(SpecError) as caught:
        spec_of(backend, sampler, tmp_path, {"image_size": size})
    (problem,) = caught.value.problems
    assert (problem.key, problem.allowed) == ("backend.image_size", f"height and width must be {says}.")
    fitting = spec_of(backend, sampler, tmp_path, {"image_size": [1024, 768]})
    assert fitting.backend.config.image_size == (1024, 768)


def test_the_checkpoints_own_configuration_says_what_fits(build, tmp_path):
    folder = build("sd3", CASES["sd3"].scheduler)
    table = {"checkpoint": str(folder), "image_size": [24, 30]}
    assert spec_of("sd3", "euler", tmp_path, table).backend.config.image_size == (24, 30)
    with pytest.raises(SpecError, match=r"multiples of 2, 32 at most; nearest: \[24, 32\]"):
        spec_of("sd3", "euler", tmp_path, table | {"image_size": [24, 48]})
    assert spec_of(
        "sd3", "euler", tmp_path, {"checkpoint": "someone/else", "image_size": 30}
    )  # not fetched: no telling


@pytest.mark.parametrize("backend", ["sd15", "flux", "z-image", "sana"])
def test_a_file_or_an_empty_folder_is_no_checkpoint(backend, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.safetensors").touch()
    for name in ("empty", "model.safetensors"):
        with pytest.raises(SpecError, match="is no diffusers checkpoint: a folder with"):
            spec_of(backend, "euler", tmp_path, {"checkpoint": str(tmp_path / name)})


def test_sizes_are_checked_without_torch(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    (tmp_path / "spec.toml").write_text(
        "[backend]\nkind = 'flux'\nimage_size = [1000, 1024]\n[sampler]\nkind = 'euler'\n[optimizer]\n"
        "kind = 'eggroll'\n[[reward]]\nkind = 'jpeg-compressibility'\n[prompts]\nfile = 'prompts.txt'\n"
    )
    code = (
        "import sys; from t2ialign.cli import main\ntry: main()\nexcept SystemExit as end: assert end.code == 2\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "validate", str(tmp_path / "spec.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "backend.image_size = [1000, 1024]: height and width must be multiples of 16" in done.stderr
    assert "nearest: [992, 1024]" in done.stderr


@pytest.mark.parametrize("key", ["shift_factor", "latents_mean"])
def test_an_autoencoder_of_another_kind_of_model_is_refused(key, build, tmp_path):
    checkpoint = shutil.copytree(build("sd", CASES["sd15-ddim"].scheduler), tmp_path / "checkpoint")
    file = checkpoint / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: [0.5] * 4 if key == "latents_mean" else 0.5}))
    options = {"checkpoint": str(checkpoint)}
    with pytest.raises(SpecError, match=f"vae/config.json has {key} = .*passes over"):
        spec_of("sd15", "ddim", tmp_path, options)
    with pytest.raises(UsageError, match=key):
        StableDiffusion(Sd15Config(**options))
