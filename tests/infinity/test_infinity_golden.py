"""Numbers recorded from the original implementation, and its released sizes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from t2ialign_infinity import ladders
from t2ialign_infinity.backend import VAE_IGNORED
from t2ialign_infinity.sampling import sample_features, with_cache, without_cache
from t2ialign_infinity.text import PackedText
from t2ialign_infinity.transformer import InfinityTransformer
from t2ialign_infinity.vae import BitVAE, wrapped_names
from t2ialign_infinity.variants import VARIANTS

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"


def close(ours: Tensor, recorded: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=tolerance)


def test_rotary_table(golden: SimpleNamespace) -> None:
    close(torch.stack([golden.rotation.real, golden.rotation.imag]), golden.io["rope"], 1e-5)


def test_image_to_bits_and_back(golden: SimpleNamespace) -> None:
    features = golden.vae.features((golden.io["enc.image"] + 1) / 2)
    close(features, golden.io["enc.raw_features"])
    *_, (_, accumulated) = golden.quantiser.steps(features)
    close(accumulated, golden.io["enc.quantized"])
    close(2 * golden.vae.decode(accumulated) - 1, golden.io["enc.recon"])


def test_teacher_forcing(golden: SimpleNamespace) -> None:
    inputs = golden.io["tf.x_wo_prefix"]
    close(golden.quantiser.unroll(golden.io["tf.bits"])[1], inputs, 1e-5)
    packed = PackedText.pack(*golden.text)
    close(packed.tokens, golden.io["text.kv_compact"], 0)
    logits = golden.transformer(packed, inputs, golden.quantiser.tokens, golden.rotation)
    close(logits.flatten(2), golden.io["tf.logits"])


@pytest.mark.parametrize("predictor", [with_cache, without_cache])
@pytest.mark.parametrize("name", ["ar", "ar_cfg1"])
def test_greedy_sampling(golden: SimpleNamespace, name: str, predictor: object) -> None:
    scales = len(golden.quantiser.ladder)
    guidance = 1.0 if name == "ar_cfg1" else golden.recorded["cfg"]
    seen: list[Tensor] = []

    def greedy(scale: int, logits: Tensor) -> Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    features = sample_features(
        golden.transformer,
        golden.quantiser,
        golden.rotation,
        golden.text,
        [guidance] * scales,
        [golden.recorded["tau"]] * scales,
        greedy,
        predictor,
    )
    logits = torch.cat(seen, dim=1)
    assert torch.equal(logits.argmax(-1), golden.io[f"{name}.bits"].long())
    if name == "ar":
        close(logits, golden.io["ar.cfg_logits"])
    close(features, golden.io[f"{name}.summed_codes"])
    image = golden.vae.decode(features)
    close(2 * image - 1, golden.io[f"{name}.image_pm1"])
    ours = (image * 255).floor().permute(0, 2, 3, 1).flip(-1)  # the original writes BGR for OpenCV; ours is RGB
    close(ours, golden.io[f"{name}.image_uint8_bgr_hwc"].float(), 1.0)


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def manifest(name: str, part: str | None = None) -> dict[str, list[int]]:
    content = json.loads((MANIFESTS / name).read_text())
    entries = content[part] if part else content
    return {k: shape for k, (shape, _) in entries.items() if not any(re.search(p, k) for p in VAE_IGNORED)}


@pytest.mark.parametrize(
    ("variant", "file", "parameters"),
    [
        ("2b", "infinity_2b.json", 2_204_564_032),
        ("8b", "infinity_8b.json", 8_375_791_824),
        ("8b-512", "infinity_8b.json", 8_375_791_824),
        ("125m", "infinity_layer12.json", 125_148_800),
    ],
)
def test_released_transformers_equal_the_manifests(variant: str, file: str, parameters: int) -> None:
    with torch.device("meta"):
        transformer = InfinityTransformer(**VARIANTS[variant].transformer)
    assert shapes(transformer) == manifest(file)
    assert sum(p.numel() for p in transformer.parameters()) == parameters


@pytest.mark.parametrize(
    ("variant", "file"), [("2b", "infinity_vae_d32.json"), ("8b", "infinity_vae_d56_f8_14_patchify.json")]
)
def test_released_autoencoders_equal_the_manifests(variant: str, file: str) -> None:
    with torch.device("meta"):
        vae = BitVAE(**VARIANTS[variant].autoencoder)
    assert shapes(vae) == manifest(file)


@pytest.mark.parametrize("golden", ["infinity_tiny"], indirect=True)
def test_tiny_sizes_equal_the_manifest(golden: SimpleNamespace) -> None:
    assert shapes(golden.transformer) == manifest("infinity_tiny.json", "infinity")
    assert shapes(golden.vae) == manifest("infinity_tiny.json", "vae")


def test_names_without_wrappers_are_understood(golden: SimpleNamespace) -> None:
    state = golden.vae.state_dict()
    plain = {re.sub(r"\.(conv|norm)(?=\.(weight|bias)$)", "", name): value for name, value in state.items()}
    assert any(".conv.weight" not in name for name in plain)
    assert wrapped_names(plain).keys() == wrapped_names(state).keys() == state.keys()


def test_ladders() -> None:
    square = ladders.nearest(1.02)
    assert [sum(h * w for h, w in square[:count]) for count in (7, 10, 12, 13)] == [521, 2521, 6425, 10521]
    assert ladders.nearest(0.5) == tuple((w, h) for h, w in ladders.nearest(2.0))
    assert sorted(ladders.LADDERS)[:2] == [0.333, 0.4]
    assert len(ladders.LADDERS) == 15
