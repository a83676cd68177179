"""The backend: text, seeds, LoRA, options, and what it says about files that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from t2ialign import LoraConfig, UsageError, plugins
from t2ialign.lora import adapter as lora
from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_lora
from t2ialign.testing import check_backend
from t2ialign_infinity import ladders
from t2ialign_infinity.backend import InfinityBackend, per_scale
from t2ialign_infinity.config import InfinityConfig
from t2ialign_infinity.sampling import DrawBits, sample_features, with_cache, without_cache
from t2ialign_infinity.text import FLATTERY, PackedText, flatter
from t2ialign_infinity.transformer import InfinityTransformer
from t2ialign_infinity.variants import VARIANTS, Variant

TARGETS = InfinityConfig().lora_targets()
PROMPTS = ["a red fox in the snow", "two cats", "grass", "old man with hat"]


def test_it_keeps_the_contract_of_backends(backend: InfinityBackend) -> None:
    check_backend(backend, PROMPTS)


def attach(backend: InfinityBackend, targets: list[str] | None = None) -> lora.Adapter:
    """A LoRA that does something."""
    adapter = lora.Adapter(backend.trainable, LoraConfig(rank=2), targets or TARGETS)
    source = torch.Generator().manual_seed(1)
    for name, parameter in adapter.parameters().items():
        if name.endswith("lora_B.weight"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=source))
    return adapter


@pytest.mark.parametrize("guidance", [3.0, 1.0, [1.0, 2.0, 4.0]])
def test_a_batch_of_eight_is_eight_singles(config: Any, guidance: float | list[float]) -> None:
    backend = InfinityBackend(config(guidance_scale=guidance))
    conditioning = backend.encode(PROMPTS * 2)
    seeds = [3, 1, 4, 1, 5, 9, 2, 6]
    images = backend.generate(conditioning, seeds)
    singles = [backend.generate(backend.encode([p]), [s]) for p, s in zip(PROMPTS * 2, seeds, strict=True)]
    torch.testing.assert_close(images, torch.cat(singles), rtol=0, atol=1e-4)
    assert images.shape == (8, 3, 36, 24)
    assert not torch.allclose(images[0], images[4])  # one prompt, two seeds


@pytest.mark.parametrize("insertion", [0, -1, -2])
def test_cached_sampling_equals_uncached(backend: InfinityBackend, insertion: int) -> None:
    guidance = [1.0, *[3.0] * (len(backend.guidance) - 1)]
    conditioning = backend.encode(PROMPTS)
    text = conditioning.tensors["text"], conditioning.tensors["text_mask"]
    choose = DrawBits(backend.noise([0, 1, 2, 3]), backend.quantiser.tokens, 0, 0.97)
    maps = [
        sample_features(
            backend.transformer,
            backend.quantiser,
            backend.rotation,
            text,
            guidance,
            backend.tau,
            choose,
            how,
            insertion,
        )
        for how in (with_cache, without_cache)
    ]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-4)


@torch.no_grad()
def test_guidance_of_hidden_states_reaches_both_halves(config: Any) -> None:
    """Behind the second block from the end, and not where the strength is 1."""
    backend = InfinityBackend(config(guidance_scale=[1.0, 3.0], cfg_insertion_layer=-2))
    blocks, seen = backend.transformer.blocks, []
    handles = [
        blocks[-2].register_forward_hook(lambda block, inputs, output: seen.append(output)),
        blocks[-1].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0])),
    ]
    images = backend.generate(backend.encode(PROMPTS[:1]), [3])
    for handle in handles:
        handle.remove()
    (before, after), (conditional, unconditional) = seen[:2], seen[2].chunk(2)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(seen[3], (3 * conditional - 2 * unconditional).repeat(2, 1, 1), rtol=1e-4, atol=1e-4)
    other = InfinityBackend(config(guidance_scale=[1.0, 3.0]))
    assert not torch.allclose(images, other.generate(other.encode(PROMPTS[:1]), [3]))
    with pytest.raises(UsageError, match="cfg_insertion_layer = -99: the model has"):
        InfinityBackend(config(cfg_insertion_layer=-99))


def test_greedy_needs_no_seed(config: Any) -> None:
    backend = InfinityBackend(config(top_k=1))
    conditioning = backend.encode(PROMPTS[:1])
    torch.testing.assert_close(backend.generate(conditioning, [0]), backend.generate(conditioning, [1]))


def test_sixteen_bit_blocks_keep_the_rest_in_float32(config: Any) -> None:
    backend = InfinityBackend(config(dtype="bfloat16"))
    assert backend.transformer.blocks[0].sa.mat_qkv.weight.dtype == torch.bfloat16
    assert backend.transformer.head.weight.dtype == torch.float32
    assert backend.transformer.text_norm.weight.dtype == torch.float32
    assert backend.generate(backend.encode(PROMPTS), [0, 1, 2, 3]).isfinite().all()


# Text


def test_text_is_encoded_once_and_the_encoder_is_dropped(
    config: Any, text_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path))
    backend = InfinityBackend(config())
    first = backend.encode(PROMPTS)
    assert "transformer" not in backend.__dict__  # text before weights: the two are never in memory together
    monkeypatch.setattr("transformers.T5EncoderModel.from_pretrained", lambda *a, **k: pytest.fail("encoded again"))
    again = backend.encode(list(reversed(PROMPTS)))
    assert again.prompts == tuple(reversed(PROMPTS))
    lengths = [len(prompt.split()) + 1 for prompt in PROMPTS]  # the end token counts
    assert first.tensors["text_mask"].sum(1).tolist() == lengths
    torch.testing.assert_close(again.tensors["text"][3][: lengths[0]], first.tensors["text"][0][: lengths[0]])


def test_packing_gives_every_row_its_own_tokens() -> None:
    text = torch.arange(24.0).view(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    packed = PackedText.pack(text, mask, unconditional=torch.full((9, 4), -1.0))
    assert packed.image.tolist() == [0, 0, 1, 1, 1] * 2
    padded = packed.pad(packed.tokens)
    torch.testing.assert_close(padded[:2], text * mask[..., None])
    assert padded[2:].sum((1, 2)).tolist() == [-8.0, -12.0]
    assert packed.mask[:, 0, 0].tolist() == mask.bool().tolist() * 2


def test_a_missing_text_encoder_is_named(config: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"text encoder .* cannot be loaded"):
        InfinityBackend(config(text_encoder=str(tmp_path))).encode(["a prompt never seen"])


@pytest.mark.parametrize(
    ("prompt", "about_people"),
    [("an old man", True), ("Two Women", True), ("a German manual", False), ("a postman", False), ("children", True)],
)
def test_positive_prompt_looks_at_whole_words(prompt: str, about_people: bool) -> None:
    assert flatter(prompt) == prompt + FLATTERY * about_people


def test_rewards_do_not_see_the_positive_prompt(config: Any) -> None:
    plain, positive = (InfinityBackend(config(positive_prompt=flag)).encode(["old man"]) for flag in (False, True))
    assert plain.prompts == positive.prompts == ("old man",)
    assert positive.tensors["text"].shape[1] > plain.tensors["text"].shape[1]


# LoRA


@pytest.mark.parametrize("target", TARGETS)
def test_lora_reaches_every_target(backend: InfinityBackend, target: str) -> None:
    conditioning = backend.encode(PROMPTS)
    packed = PackedText.pack(conditioning.tensors["text"], conditioning.tensors["text_mask"])
    inputs = torch.randn(4, 88, 12, generator=torch.Generator().manual_seed(0))
    arguments = packed, inputs, backend.quantiser.tokens, backend.rotation
    adapter = attach(backend, [target])
    tuned = backend.transformer(*arguments)
    with adapter.disabled():
        base = backend.transformer(*arguments)
    assert (tuned - base).abs().mean() > 1e-3


def test_an_exported_lora_loads_into_a_fresh_backend(backend: InfinityBackend, config: Any, tmp_path: Path) -> None:
    write_lora(attach(backend), backend.info.adapter_prefix, tmp_path / "pytorch_lora_weights.safetensors")
    fresh = InfinityBackend(config())
    conditioning = fresh.encode(PROMPTS)
    base = fresh.generate(conditioning, [0, 1, 2, 3])
    fresh.load_lora(tmp_path)
    loaded = fresh.generate(conditioning, [0, 1, 2, 3])
    torch.testing.assert_close(loaded, backend.generate(conditioning, [0, 1, 2, 3]), rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, base)


@pytest.mark.parametrize(
    "options", [{}, {"guidance_scale": 1.0}, {"image_size": [24, 36], "aspect_ratio": 1.0, "guidance_scale": 1.5}]
)
def test_the_code_on_the_model_card_draws_the_image_of_the_run(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    backend = InfinityBackend(config(**options))
    write_lora(attach(backend), "transformer", tmp_path / "pytorch_lora_weights.safetensors")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(backend.snippet().replace('"cuda"', '"cpu"'), scope)
    ours = backend.generate(backend.encode(["a red fox in the snow"]), [0])
    assert ours.shape == (1, 3, *((24, 36) if "image_size" in options else (36, 24)))
    torch.testing.assert_close(scope["images"], ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("resolution", ladders.SCALES)
def test_a_trained_size_is_its_resolution_and_aspect_ratio(resolution: str) -> None:
    count = ladders.SCALES[resolution]
    for ratio, full in ladders.LADDERS.items():
        height, width = (16 * cells for cells in full[count - 1])
        assert ladders.of_size([height, width], ladders.SCALES.values(), 16) == (ladders.nearest(ratio), count)


def test_other_sizes_are_refused_with_those_there_are(config: Any) -> None:
    (why,) = InfinityConfig(image_size=[1024, 768]).misfits().values()
    assert why.startswith("is no trained size; near it are [768, 768], [880, 704], [960, 720]")
    assert not InfinityConfig(image_size=[1152, 864]).misfits()
    with pytest.raises(ValidationError, match="image_size decides resolution and aspect_ratio"):
        InfinityConfig(image_size=1024, resolution="1M", aspect_ratio=1.5)
    with pytest.raises(UsageError, match=r"no trained size; near it are \[32, 32\]"):
        InfinityBackend(config(image_size=[24, 35], aspect_ratio=1.0))


# Options and files


def test_one_number_per_scale() -> None:
    assert per_scale(3.0, 4) == [3.0, 3.0, 3.0, 3.0]
    assert per_scale([1.0, 2.0], 4) == [1.0, 2.0, 2.0, 2.0]
    assert per_scale([1.0, 2.0, 3.0], 2) == [1.0, 2.0]
    with pytest.raises(ValidationError):
        InfinityConfig(tau=[])


@pytest.mark.parametrize(
    ("variant", "resolution", "size", "tau"),
    [("2b", None, 1024, 0.5), ("2b", "0.60M", 768, 0.5), ("8b-512", None, 512, 1.0), ("125m", None, 256, 1.0)],
)
def test_presets(variant: str, resolution: str | None, size: int, tau: float, tmp_path: Path) -> None:
    for file in ("infinity_2b_reg.pth", "infinity_vae_d32reg.pth", "infinity_125M_256x256.pth", "infinity_vae_d16.pth"):
        (tmp_path / file).touch()
    (tmp_path / "infinity_8b_512x512_weights").mkdir()
    (tmp_path / "infinity_vae_d56_f8_14_patchify.pth").touch()
    backend = InfinityBackend(
        InfinityConfig.model_validate({"checkpoint": str(tmp_path), "variant": variant, "resolution": resolution})
    )
    assert backend.info.image_size == (size, size)
    assert set(backend.tau) == {tau}
    assert len(backend.rotation) == backend.info.latent_shape[0]


def test_a_checkpoint_of_another_depth_is_refused(checkpoint: Path, config: Any, tmp_path: Path) -> None:
    folder = tmp_path / "deeper"
    shutil.copytree(checkpoint, folder)
    sizes = json.loads((folder / "config.json").read_text())
    sizes["transformer"]["depth"] = 4
    (folder / "config.json").write_text(json.dumps(sizes))
    backend = InfinityBackend(config(checkpoint=str(folder)))
    with pytest.raises(UsageError, match=r"has 2 blocks, the model has 4: set backend\.variant"):
        backend.generate(backend.encode(["grass"]), [0])


def test_missing_and_truncated_files_are_named(checkpoint: Path, config: Any, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    broken = folder / "vae.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    backend = InfinityBackend(config(checkpoint=str(folder)))
    with pytest.raises(UsageError, match=r"vae\.safetensors is truncated or damaged"):
        backend.generate(backend.encode(["grass"]), [0])
    broken.unlink()
    with pytest.raises(UsageError, match=r"has no vae\.safetensors"):
        InfinityBackend(config(checkpoint=str(folder)))


def test_released_files_load(checkpoint: Path, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released forms: shards with an index, and a training checkpoint with the weights under "vae"."""
    sizes = json.loads((checkpoint / "config.json").read_text())
    tiny = Variant("shards", "vae.pth", "1M", 1.0, sizes["transformer"], sizes["vae"])
    monkeypatch.setitem(VARIANTS, "8b", tiny)
    weights = load_file(checkpoint / "infinity.safetensors")
    names = sorted(weights)
    (tmp_path / "shards").mkdir()
    placed = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(names)}
    for shard in set(placed.values()):
        save_file({n: weights[n] for n in names if placed[n] == shard}, tmp_path / "shards" / shard)
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    vae = load_file(checkpoint / "vae.safetensors") | {"quantize.lfq.mask": torch.zeros(3)}
    torch.save({"vae": vae, "ema": {}, "epoch": 3}, tmp_path / "vae.pth")
    ours = InfinityBackend(config(checkpoint=str(tmp_path), variant="8b", tau=0.5))
    reference = InfinityBackend(config())
    conditioning = ours.encode(PROMPTS)
    torch.testing.assert_close(
        ours.generate(conditioning, [0, 1, 2, 3]), reference.generate(conditioning, [0, 1, 2, 3])
    )


def test_the_plugin_is_registered_without_torch() -> None:
    declared = plugins.registry().find("backend", "infinity")
    assert declared.provides == {"autoregressive", "lora", "tokens"}
    assert declared.load() is InfinityBackend


def test_blocks_are_numbered_across_chunks(backend: InfinityBackend) -> None:
    assert isinstance(backend.trainable, InfinityTransformer)
    assert len(backend.trainable.blocks) == backend.trainable.depth


# Bits and their log-probabilities


@pytest.mark.parametrize(("guided", "insertion"), [(False, 0), (True, 0), (True, -2)])
def test_log_probs_are_those_that_cached_sampling_had(config: Any, guided: bool, insertion: int) -> None:
    backend = InfinityBackend(config(tau=0.5, cfg_insertion_layer=insertion))
    conditioning, seeds = backend.encode(PROMPTS), [0, 1, 2, 3]
    images, bits = backend.draw_tokens(conditioning, seeds, guided=guided)
    draws, seen = DrawBits(backend.noise(seeds), backend.quantiser.tokens, 0, 1.0), []

    def choose(scale: int, logits: torch.Tensor) -> torch.Tensor:
        chosen = draws(scale, logits)
        seen.append(logits.log_softmax(-1).gather(-1, chosen[..., None]).squeeze(-1).sum(-1))
        return chosen

    text = conditioning.tensors["text"], conditioning.tensors["text_mask"]
    strength = backend.guidance if guided else [1.0] * len(backend.guidance)
    arguments = backend.transformer, backend.quantiser, backend.rotation, text, strength, backend.tau, choose
    torch.testing.assert_close(backend.vae.decode(sample_features(*arguments, insertion=insertion)), images)
    found = backend.log_prob(conditioning, bits, guided)
    torch.testing.assert_close(found, torch.cat(seen, 1), rtol=0, atol=1e-3)
    assert torch.allclose(found, backend.log_prob(conditioning, bits)) is not guided
    count = int((backend.scale_of < 3).sum())
    prefix = backend.log_prob(conditioning, bits[:, :count], guided)
    torch.testing.assert_close(prefix, torch.cat(seen, 1)[:, :count], rtol=0, atol=1e-3)
    assert torch.equal(backend.draw_tokens(conditioning, seeds, plain=False)[0], backend.generate(conditioning, seeds))


def test_log_probs_have_gradients_in_every_target(backend: InfinityBackend) -> None:
    adapter = Adapter(backend.trainable, backend.config.lora, backend.config.lora_targets())
    conditioning = backend.encode(PROMPTS)
    _, bits = backend.draw_tokens(conditioning, [0, 1, 2, 3])
    backend.log_prob(conditioning, bits).sum().backward()
    for name, parameter in adapter.parameters().items():
        if name.endswith("lora_B.weight"):
            assert parameter.grad is not None and bool((parameter.grad != 0).any()), name  # noqa: PT018
