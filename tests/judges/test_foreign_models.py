"""Folders of models that judges load: what no library may build is told in one line, and nothing of it is run."""

from __future__ import annotations

import json

import pytest
import torch

from t2ialign import UsageError
from t2ialign_infinity.text import TextEncoder
from t2ialign_judges.detectors import kind_of
from t2ialign_judges.vlm.voices import Local

SETTINGS = {"mask2former": {"model_type": "mask2former"}, "vlm": {"model_type": "qwen2_vl"}, "t5": {"model_type": "t5"}}
LOADS = {
    "mask2former": kind_of,
    "vlm": lambda folder: Local(str(folder), None, "float32", torch.device("cpu"), 0.0, 8),
    "t5": lambda folder: list(TextEncoder(str(folder), "float32", 16, torch.device("cpu"))._run(folder, ["red"])),
}


def own_code(folder, settings):
    settings["auto_map"] = {"AutoModel": "own.Mine"}


def endless(folder, settings):
    settings["num_layers"] = 9_999_999_999


def lying(folder, settings):
    (folder / "model.safetensors").write_bytes((10**12).to_bytes(8, "little") + b"{}")


def no_settings(folder, settings):
    settings.clear()


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (own_code, "config.json wants code of its own, which is never run: auto_map names own.Mine"),
        (endless, "config.json tells of more than .* layers: num_layers = 9999999999"),
        (lying, "model.safetensors is no safetensors file, or was cut in its header"),
        (no_settings, "has no config.json"),
    ],
)
def test_a_model_that_nobody_may_build_is_refused(kind, spoil, told, tmp_path):
    settings = dict(SETTINGS[kind])
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    spoil(tmp_path, settings)
    if settings:
        (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=told):
        LOADS[kind](tmp_path)
