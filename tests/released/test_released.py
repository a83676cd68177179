"""Every backend on the files and configurations of released repositories; no weight is there, and no network."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

import pytest
import torch
from released.hub import HERE, Hub, listing

from t2ialign import checkpoints, plugins
from t2ialign.config import CHECKPOINT
from t2ialign.errors import UsageError
from t2ialign.lora.adapter import Adapter, matching
from t2ialign_diffusers.backend import DiffusersBackend, quiet_libraries
from t2ialign_infinity.transformer import InfinityTransformer
from t2ialign_infinity.variants import VARIANTS
from t2ialign_var.transformer import VarTransformer, released

KINDS = {
    kind: part for kind, part in plugins.registry().parts["backend"].items() if part.target.startswith("t2ialign_")
}
SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
#: kind -> (adapted layers, parameters of the default LoRA of rank 4). That of Stable Diffusion 1.5 is a published one.
LORA = {
    "infinity": (226, 6_070_272),
    "sana-sprint": (168, 3_030_912),
    "sana": (166, 3_003_008),
    "sd15": (128, 797_184),
    "sd-turbo": (128, 829_952),
    "sdxl": (560, 5_806_080),
    "sdxl-turbo": (560, 5_806_080),
    "hyper-sd": (560, 5_806_080),
    "pixart-dmd": (224, 2_064_384),
    "pixart-sigma": (224, 2_064_384),
    "sd3": (191, 2_347_008),
    "flux": (190, 4_669_440),
    "flux2-klein": (40, 2_949_120),
    "qwen-image": (480, 11_796_480),
    "var": (82, 1_540_096),
    "z-image": (239, 9_938_176),
}
#: Parameters of released checkpoints that are no diffusers folders.
PARAMETERS = {"var": 310_283_520, "infinity": 2_204_564_032}


def references(kind: str) -> list[str]:
    """The repositories that a backend takes by default."""
    fields = KINDS[kind].config.model_fields.values()
    return [field.default for field in fields if CHECKPOINT in field.metadata and field.default]


def siblings() -> list[tuple[str, str]]:
    """(kind, hub id) of the other listings here that hold a whole pipeline, each with the first backend that fits."""
    found = []
    for file in sorted(HERE.glob("*/model_index.json")):
        name = json.loads(file.read_text())["_class_name"]
        fits = [kind for kind, part in KINDS.items() if name in getattr(part.load(), "pipeline_names", ())]
        reference = file.parent.name.replace("--", "/")
        if any(path.startswith("vae/") for path in listing(reference)["files"]):
            found.append((fits[0], reference))
    return [(kind, reference) for kind, reference in found if reference != references(kind)[0]]


CASES = [*((kind, references(kind)[0]) for kind in KINDS), *siblings(), ("sana", references("sana")[0] + " bf16")]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path)
    monkeypatch.setattr(checkpoints, "resolve", made)
    return made


def opened(kind, reference):
    checkpoint, _, variant = reference.partition(" ")
    options = {"checkpoint": checkpoint} | ({"variant": variant} if variant else {})
    return KINDS[kind].load()(KINDS[kind].config(**options))


def test_every_backend_has_its_listings():
    for kind in KINDS:
        for reference in references(kind):
            facts = listing(reference)
            assert facts["source"], reference
            assert facts["files"], reference


@pytest.mark.parametrize(("kind", "reference"), CASES)
def test_one_set_of_weights_is_fetched_of_every_component(kind, reference, hub):
    if kind == "var":  # reads its weights at once
        with pytest.raises(UsageError):
            opened(kind, reference)
        assert hub.weights(reference) == {"var_d16.pth", "vae_ch160v4096z32.pth"}
        return
    backend = opened(kind, reference)
    checkpoint, _, variant = reference.partition(" ")
    if not isinstance(backend, DiffusersBackend):
        assert hub.weights(checkpoint) == {"infinity_2b_reg.pth", "infinity_vae_d32reg.pth"}
        return
    needed = {*backend.text_components, backend.trained_component, "vae"} - {*backend.weightless}
    models = {part for part in needed if f"{part}/config.json" in listing(checkpoint)["files"]}
    found = [PurePosixPath(name) for name in hub.weights(checkpoint)]
    if kind == "hyper-sd":
        assert backend.config.network_file in listing(references(kind)[1])["files"]
    if kind == "pixart-dmd":
        student = references(kind)[1]
        assert hub.weights(student) == {"transformer/diffusion_pytorch_model.bin"}
    assert {str(name.parent) for name in found} == models  # no root file, no folder that nobody loads
    for part in models:
        own = [name.name for name in found if str(name.parent) == part]
        plain = [name for name in own if name.count(".") == 1]
        offered = [
            name for name in listing(checkpoint)["files"] if name.startswith(f"{part}/") and f".{variant}" in name
        ]
        assert own == ([name for name in own if variant in name] if variant and offered else plain)
        assert all(name.endswith(".safetensors") for name in own)
        shards = [SHARD.search(name) for name in own]
        assert len(own) == (int(shards[0][2]) if shards[0] else 1), own
    for name in listing(checkpoint)["files"]:  # tokenizers are fetched whole
        if name.startswith("tokenizer") and not name.endswith("/"):
            assert name in hub.fetched[checkpoint]


def network_of(kind, backend):
    """The trained network at full size without weights, and the parameters that the listing states."""
    if kind == "var":
        return VarTransformer(**released(16)), PARAMETERS[kind]
    if kind == "infinity":
        return InfinityTransformer(**VARIANTS["2b"].transformer), PARAMETERS[kind]
    import diffusers

    reference, part = backend.config.checkpoint, backend.trained_component
    folder = backend.folder
    if kind == "pixart-dmd":
        reference, folder = references(kind)[1], backend.network_folder
    about = listing(reference)["about"][f"{part}/config.json"]
    network = getattr(diffusers, about["class"])
    return network.from_config(json.loads((folder / part / "config.json").read_text())), about["parameters"]


@pytest.mark.parametrize(("kind", "reference"), siblings())
def test_other_editions_have_the_parameters_that_are_stated(kind, reference, hub):
    backend = opened(kind, reference)
    with torch.device("meta"), quiet_libraries():
        network, parameters = network_of(kind, backend)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_lora_fits_the_network_at_full_size(kind, hub):
    backend = None if kind == "var" else opened(kind, references(kind)[0])
    config = KINDS[kind].config()
    with torch.device("meta"), quiet_libraries():
        network, parameters = network_of(kind, backend)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    names = [name for name, _ in network.named_modules()]
    for target in config.lora_targets():
        assert matching(names, [target]), target
    with torch.device("meta"):
        adapter = Adapter(network, config.lora, config.lora_targets())
    assert (len(adapter.layers), sum(p.numel() for p in adapter.parameters().values())) == LORA[kind]
