"""The backend: seeds, prompts, LoRA, and what it says about files that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from t2ialign import LoraConfig, UsageError, plugins
from t2ialign.lora import adapter as lora
from t2ialign.lora.file import write_lora
from t2ialign_var.backend import VarBackend
from t2ialign_var.classes import imagenet
from t2ialign_var.config import VarConfig
from t2ialign_var.loading import read_tensors
from t2ialign_var.sampling import DrawTokens, sample_features, with_cache, without_cache

TARGETS = VarConfig().lora_targets()


def config(checkpoint: Path, **options: Any) -> VarConfig:
    return VarConfig(checkpoint=str(checkpoint), **({"dtype": "float32", "top_k": 16} | options))


def attach(backend: VarBackend, targets: list[str] | None = None, strength: float = 0.3) -> lora.Adapter:
    """A LoRA that does something."""
    adapter = lora.Adapter(backend.trainable, LoraConfig(rank=2), targets or TARGETS)
    source = torch.Generator().manual_seed(1)
    for name, parameter in adapter.parameters().items():
        if name.endswith("lora_B.weight"):
            parameter.data.copy_(strength * torch.randn(parameter.shape, generator=source))
    return adapter


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 0.0}, {"more_smooth": True}])
def test_a_batch_of_eight_is_eight_singles(checkpoint: Path, options: dict[str, Any]) -> None:
    backend = VarBackend(config(checkpoint, **options))
    conditioning = backend.encode(["ant", "bee", "7", "a photo of dog", "eel", "fox", "ant", "ant"])
    seeds = [3, 1, 4, 1, 5, 9, 2, 6]
    images = backend.generate(conditioning, seeds)
    singles = torch.cat([backend.generate(conditioning[[i]], [seed]) for i, seed in enumerate(seeds)])
    torch.testing.assert_close(images, singles, rtol=0, atol=1e-4)
    assert images.shape == (8, 3, 12, 12)
    assert images.min() >= 0
    assert images.max() <= 1
    assert not torch.allclose(images[0], images[6])  # one class, two seeds


def test_cached_sampling_equals_uncached(backend: VarBackend) -> None:
    labels, noise = torch.tensor([0, 1, 2, 3]), backend.noise([0, 1, 2, 3])
    choose = DrawTokens(backend.vqvae.quantize, noise, top_k=16, top_p=0.95)
    maps = [
        sample_features(backend.transformer, backend.vqvae.quantize, labels, 4.0, choose, predictor)
        for predictor in (with_cache, without_cache)
    ]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-4)


def test_more_smooth_mixes_codes(checkpoint: Path) -> None:
    sharp, smooth = (VarBackend(config(checkpoint, more_smooth=flag)) for flag in (False, True))
    conditioning = sharp.encode(["ant"])
    assert not torch.allclose(sharp.generate(conditioning, [0]), smooth.generate(conditioning, [0]))


def test_sixteen_bit_blocks_keep_the_rest_in_float32(checkpoint: Path) -> None:
    backend = VarBackend(config(checkpoint, dtype="bfloat16"))
    assert backend.transformer.blocks[0].ffn.fc1.weight.dtype == torch.bfloat16
    assert backend.transformer.head.weight.dtype == torch.float32
    assert backend.vqvae.quantize.embedding.weight.dtype == torch.float32
    assert backend.generate(backend.encode(["ant", "bee"]), [0, 1]).isfinite().all()
    half = VarBackend(config(checkpoint, dtype="float16"))
    assert half.vqvae.decoder.conv_in.weight.dtype == torch.float32


@pytest.mark.parametrize("target", TARGETS)
def test_lora_reaches_every_target(backend: VarBackend, golden: SimpleNamespace, target: str) -> None:
    labels, inputs = golden.io["tf.labels"], golden.io["tf.var_input"]
    adapter = attach(backend, [target])
    tuned = backend.transformer(labels, inputs)
    with adapter.disabled():
        base = backend.transformer(labels, inputs)
    torch.testing.assert_close(base, golden.io["tf.logits"], rtol=0, atol=1e-4)
    assert (tuned - base).abs().mean() > 1e-3


def test_an_exported_lora_loads_into_a_fresh_backend(backend: VarBackend, checkpoint: Path, tmp_path: Path) -> None:
    write_lora(attach(backend), backend.info.adapter_prefix, tmp_path / "pytorch_lora_weights.safetensors")
    fresh = VarBackend(config(checkpoint))
    conditioning = fresh.encode(["ant", "bee"])
    base = fresh.generate(conditioning, [0, 1])
    fresh.load_lora(tmp_path)
    loaded = fresh.generate(conditioning, [0, 1])
    torch.testing.assert_close(loaded, backend.generate(conditioning, [0, 1]), rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, base)


def test_a_lora_of_another_model_is_refused(backend: VarBackend, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    with pytest.raises(UsageError, match=r"has no pytorch_lora_weights\.safetensors"):
        backend.load_lora(tmp_path)
    factors = {"lora_A.weight": torch.zeros(2, 64), "lora_B.weight": torch.zeros(64, 2)}
    save_file({f"transformer.blocks.7.ffn.fc1.{side}": factor for side, factor in factors.items()}, path)
    with pytest.raises(UsageError, match=r"another model.*blocks\.7\.ffn\.fc1"):
        backend.load_lora(tmp_path)
    save_file({f"base_model.model.head.{side}": factor for side, factor in factors.items()}, path)
    with pytest.raises(UsageError, match=r"for another model.*head\.lora_[AB]\.weight \("):
        backend.load_lora(tmp_path)
    save_file({"transformer.head.lora_A.weight": torch.zeros(2, 64)}, path)
    with pytest.raises(UsageError, match=r"lacks.*head\.lora_B"):
        VarBackend(config(checkpoint)).load_lora(tmp_path)


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 0.0}, {"guidance_scale": 1.0, "top_p": 0.5}])
def test_the_code_on_the_model_card_draws_the_image_of_the_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    backend = VarBackend(config(checkpoint, **options))
    write_lora(attach(backend), "transformer", tmp_path / "pytorch_lora_weights.safetensors")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(backend.snippet().replace('"cuda"', '"cpu"'), scope)
    ours = backend.generate(backend.encode([backend.classes.names[0]]), [0])
    torch.testing.assert_close(scope["images"], ours, rtol=0, atol=1e-5)


def test_sizes_are_squares_of_the_checkpoints_own(backend: VarBackend) -> None:
    assert not VarConfig(image_size=256).misfits()
    assert (
        "squares alone, this checkpoint's have 256 pixels" in VarConfig(image_size=[256, 512]).misfits()["image_size"]
    )
    assert not VarConfig(image_size=[512, 512], depth=36).misfits()
    assert backend.info.image_size == (12, 12)
    with pytest.raises(UsageError, match="squares alone, this checkpoint's have 12 pixels a side"):
        VarBackend(backend.config.model_copy(update={"image_size": (12, 16)}))


# Prompts


def test_imagenet_has_1000_distinct_names_in_order() -> None:
    names = imagenet()
    assert len(names) == 1000
    assert len({name.lower() for name in names.names}) == 1000
    known = {
        0: "tench",
        207: "golden retriever",
        281: "tabby",
        388: "giant panda",
        980: "volcano",
        999: "toilet tissue",
    }
    assert {index: names.names[index] for index in known} == known
    assert all(names.find(names.text(index)) == names.find(str(index)) == index for index in range(1000))


def test_prompts_may_be_numbers_names_or_phrases() -> None:
    names = imagenet()
    assert {names.find(p) for p in ("207", "golden retriever", "Golden  Retriever", "a photo of golden retriever")} == {
        207
    }
    assert names.text(207) == "a photo of golden retriever"


def test_rewards_see_a_checkpoints_own_names(backend: VarBackend) -> None:
    assert backend.encode(["2", "a photo of bee"]).prompts == ("cat", "bee")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("golden retreiver", "did you mean 'golden retriever'"), ("1000", "from 0 to 999"), ("xyzzy", "is no class")],
)
def test_an_unknown_class_gets_one_clear_error(prompt: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        imagenet().find(prompt)


# Files


def test_a_checkpoint_of_another_depth_is_refused(golden: SimpleNamespace, tmp_path: Path) -> None:
    weights = {k.removeprefix("var."): v for k, v in golden.tensors.items() if k.startswith("var.")}
    torch.save(weights, tmp_path / "var_d20.pth")
    with pytest.raises(UsageError, match=r"var_d20\.pth has 2 blocks, the model has 20: set backend\.depth"):
        VarBackend(VarConfig(checkpoint=str(tmp_path), depth=20))
    with pytest.raises(UsageError, match=r"no var_d16\.pth"):
        VarBackend(VarConfig(checkpoint=str(tmp_path)))


def test_names_and_shapes_must_fit(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wider"
    shutil.copytree(checkpoint, folder)
    sizes = json.loads((folder / "config.json").read_text())
    sizes["transformer"]["width"] = 128
    (folder / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(UsageError, match=r"var\.safetensors does not fit VarTransformer: \d+ of another shape"):
        VarBackend(config(folder))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    tensors: dict[str, Tensor] = {"a": torch.randn(1000)}
    path = tmp_path / name
    torch.save(tensors, path) if name.endswith("pth") else save_file(tensors, path)
    assert torch.equal(read_tensors(path)["a"], tensors["a"])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UsageError, match=f"{name} is truncated or damaged"):
        read_tensors(path)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": Path("x")}, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="more than tensors"):
        read_tensors(tmp_path / "weights.pth")


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({f"w{number}": torch.full((2,), float(number))}, tmp_path / f"part-{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w1": "part-1.safetensors", "w2": "part-2.safetensors"}}))
    assert sorted(read_tensors(tmp_path)) == ["w1", "w2"]
    (tmp_path / "part-2.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no part-2\.safetensors"):
        read_tensors(tmp_path)


def test_wrong_class_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    shutil.copytree(checkpoint, folder)
    (folder / "classes.json").write_text('["ant", "bee"]')
    with pytest.raises(UsageError, match="list of 10 distinct"):
        VarBackend(config(folder))


def test_the_plugin_is_registered_without_torch() -> None:
    declared = plugins.registry().find("backend", "var")
    assert declared.provides == {"autoregressive", "lora", "tokens"}
    assert declared.load() is VarBackend
