"""Which samplers fit which model, as a spec's validation says it: before any weight is loaded."""

from __future__ import annotations

import pytest

from t2ialign import SpecError
from t2ialign.spec.parse import parse

HUB_IDS = {"epd": {"steps": 4}, "diffusers": {"scheduler": "UniPCMultistepScheduler"}}


def spec_of(backend, sampler, tmp_path, **options):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    tree = {
        "backend": {"kind": backend},
        "sampler": {"kind": sampler, **options},
        "optimizer": {"kind": "eggroll"},
        "reward": [{"kind": "jpeg-compressibility"}],
        "prompts": {"file": "prompts.txt"},
    }
    return parse(tree, "spec.toml", tmp_path)


@pytest.mark.parametrize("backend", ["sd15", "sdxl", "sd3", "sana", "z-image"])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpm2", "ipndm", "dpmpp-2m", "epd", "diffusers", "scm"])
def test_multi_step_models_take_every_multi_step_sampler(backend, sampler, tmp_path):
    assert spec_of(backend, sampler, tmp_path, **HUB_IDS.get(sampler, {})).backend.kind == backend


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
