"""Checkpoints that hold their weights in several variants."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sd.cases import CASES, PROMPTS, make

from t2ialign import UsageError, checkpoints
from t2ialign.lora.adapter import Adapter, LoraConfig
from t2ialign.lora.file import write_lora
from t2ialign_diffusers.folder import open_checkpoint

CASE = CASES["sdxl"]
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")


@pytest.fixture
def folder(build, tmp_path):
    """UNet and first text encoder have a halved variant beside the plain weights, the others only plain ones."""
    target = tmp_path / "checkpoint"
    shutil.copytree(build(CASE.family, CASE.scheduler), target)
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        weights = {key: 0.5 * value for key, value in load_file(target / f"{name}.safetensors").items()}
        save_file(weights, target / f"{name}.fp16.safetensors", metadata={"format": "pt"})
    return target


def test_network_and_prompts_come_from_the_variant(build, folder):
    plain = make(CASE, build, checkpoint=str(folder))
    backend = make(CASE, build, checkpoint=str(folder), variant="fp16")
    for mine, other in zip(backend.trainable.parameters(), plain.trainable.parameters(), strict=True):
        assert torch.equal(mine, 0.5 * other)
    assert torch.equal(backend.pipeline.vae.decoder.conv_in.weight, plain.pipeline.vae.decoder.conv_in.weight)
    without, with_variant = (b.encode(PROMPTS).tensors["prompt_embeds"] for b in (plain, backend))
    assert (with_variant - without).abs().max() > 0.1


@pytest.mark.parametrize("shards", ["model.fp16-0000{}-of-00002", "model-0000{}-of-00002.fp16"])
def test_plain_weights_may_be_absent_and_shards_are_checked(build, folder, shards):
    file = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    open_checkpoint(str(folder), None, CASE.backend.pipeline_names, PARTS, variant="fp16")
    with pytest.raises(UsageError, match=r"'unet' has no .* it has the variant 'fp16', see backend\.variant"):
        make(CASE, build, checkpoint=str(folder))
    first, second = (f"diffusion_pytorch_{shards.format(i)}.safetensors" for i in (1, 2))
    file.rename(folder / "unet" / first)
    index = f'{{"weight_map": {{"a": "{first}", "b": "{second}"}}}}'
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(index)
    with pytest.raises(UsageError, match=f"'unet' lacks the shard {second}"):
        make(CASE, build, checkpoint=str(folder), variant="fp16")


def test_an_unknown_variant_is_an_error(build):
    with pytest.raises(UsageError, match=r"no weights of the variant 'fp61' \(backend\.variant\)"):
        make(CASE, build, variant="fp61")


def test_only_the_variant_is_fetched_where_there_is_one(folder, monkeypatch):
    """A hub that gives every file which a pattern asks for."""
    asked = []

    def resolve(reference, revision, patterns):
        asked.extend(patterns)
        return folder

    monkeypatch.setattr(checkpoints, "resolve", resolve)
    open_checkpoint("owner/name", None, CASE.backend.pipeline_names, PARTS, variant="fp16")
    wanted = {
        str(file.relative_to(folder))
        for pattern in asked
        for file in folder.glob(pattern)
        if file.suffix == ".safetensors"
    }
    assert wanted == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_the_model_card_loads_the_same_variant(build, folder, tmp_path, monkeypatch):
    backend = make(CASE, build, checkpoint=str(folder), variant="fp16")
    adapter = Adapter(backend.trainable, LoraConfig(rank=1), ["to_q"])
    write_lora(adapter, "unet", tmp_path / "pytorch_lora_weights.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(backend.snippet_loading(), names)
    assert torch.equal(names["pipe"].unet.conv_in.weight, backend.trainable.conv_in.weight)
