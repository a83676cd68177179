"""Numbers recorded from the original implementation, and its released sizes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from t2ialign_var.backend import TRANSFORMER_IGNORED, VQVAE_IGNORED
from t2ialign_var.sampling import draw, keep_likely, sample_features, with_cache, without_cache
from t2ialign_var.transformer import PATCH_NUMS_256, VarTransformer, released
from t2ialign_var.vqvae import RELEASED, VQVAE

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"


class Greedy:
    """Choose the likeliest code and remember everything."""

    def __init__(self, vqvae: VQVAE) -> None:
        self.vqvae = vqvae
        self.logits: list[Tensor] = []

    def __call__(self, scale: int, logits: Tensor) -> Tensor:
        self.logits.append(logits)
        return self.vqvae.quantize.embedding(logits.argmax(-1))


def close(ours: Tensor, recorded: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=tolerance)


def test_teacher_forcing(golden: SimpleNamespace) -> None:
    close(golden.transformer(golden.io["tf.labels"], golden.io["tf.var_input"]), golden.io["tf.logits"])


def test_tokens_to_transformer_inputs_and_image(golden: SimpleNamespace) -> None:
    features, inputs = golden.vqvae.quantize.unroll(golden.io["tf.idx"])
    close(inputs, golden.io["tf.var_input"])
    close(features, golden.io["tf.fhat"])
    close(golden.vqvae.pixels(features).clamp(-1, 1), golden.io["tf.recon"])


def test_image_to_tokens_and_back(golden: SimpleNamespace) -> None:
    features = golden.vqvae.features((golden.io["enc.image"] + 1) / 2)
    close(features, golden.io["enc.f"])
    tokens = golden.vqvae.quantize.encode(features)
    assert torch.equal(tokens, golden.io["enc.idx"])
    close(golden.vqvae.pixels(golden.vqvae.quantize.unroll(tokens)[0]).clamp(-1, 1), golden.io["enc.recon"])


@pytest.mark.parametrize("predictor", [with_cache, without_cache])
@pytest.mark.parametrize(("name", "guidance"), [("ar", 1.5), ("ar_cfg0", 0.0)])
def test_greedy_sampling(golden: SimpleNamespace, name: str, guidance: float, predictor: object) -> None:
    greedy = Greedy(golden.vqvae)
    features = sample_features(
        golden.transformer, golden.vqvae.quantize, golden.io["tf.labels"], guidance, greedy, predictor
    )
    logits = torch.cat(greedy.logits, dim=1)
    assert torch.equal(logits.argmax(-1), golden.io[f"{name}.tokens"])
    close(golden.vqvae.decode(features), golden.io[f"{name}.image"])
    if guidance:
        close(logits, golden.io["ar.cfg_logits"])


def test_filter(golden: SimpleNamespace) -> None:
    kept = keep_likely(golden.io["filter.logits"], top_k=8, top_p=0.9)
    close(kept.softmax(-1), golden.io["filter.probs_top8_p0.9"], 1e-6)


def test_top_k_beyond_the_codebook_keeps_everything(golden: SimpleNamespace) -> None:
    assert torch.equal(keep_likely(golden.io["filter.logits"], top_k=900), golden.io["filter.logits"])


def test_draws_follow_the_distribution_and_never_a_dropped_code() -> None:
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf, 2.0, -torch.inf])
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits.expand(len(noise), -1), noise)
    shares = torch.bincount(drawn, minlength=6) / len(noise)
    close(shares, logits.softmax(-1), 5e-3)
    extremes = draw(logits.expand(2, -1), torch.tensor([-40.0, 40.0]))
    assert extremes.tolist() == [1, 4]


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def manifest(name: str, ignored: tuple[str, ...], part: str | None = None) -> dict[str, list[int]]:
    content = json.loads((MANIFESTS / name).read_text())
    entries = content[part] if part else content
    return {k: shape for k, (shape, _) in entries.items() if not any(re.search(p, k) for p in ignored)}


def test_released_sizes_equal_the_manifests() -> None:
    with torch.device("meta"):
        transformer, vqvae = VarTransformer(**released(16)), VQVAE(PATCH_NUMS_256, **RELEASED)
    assert shapes(transformer) == manifest("var_d16.json", TRANSFORMER_IGNORED)
    assert shapes(vqvae) == manifest("var_vqvae_ch160v4096z32.json", VQVAE_IGNORED)
    assert vqvae.image_side == 256
    assert vqvae.quantize.quant_resi.chosen == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(16, 310_283_520), (20, 600_917_136), (24, 1_033_399_360), (30, 2_010_020_356), (36, 2_353_893_904)],
)
def test_parameter_counts(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        transformer = VarTransformer(**released(depth))
    assert sum(p.numel() for p in transformer.parameters()) == parameters


def test_tiny_sizes_equal_the_manifest(golden: SimpleNamespace) -> None:
    assert shapes(golden.transformer) == manifest("var_tiny.json", TRANSFORMER_IGNORED, "var")
    assert shapes(golden.vqvae) == manifest("var_tiny.json", VQVAE_IGNORED, "vqvae")
