"""HPSv2 against its own code: key map, score, gradient, token ids."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from t2ialign import UsageError
from t2ialign_rewards.config import HpsConfig
from t2ialign_rewards.hps import Hps
from t2ialign_rewards.open_clip import to_transformers
from t2ialign_rewards.text import Tokenizer, open_clip_clean


@pytest.fixture(scope="module")
def data(golden):
    return golden("hpsv2")


@pytest.fixture(scope="module")
def prompts(data, words):
    return [words(ids) for ids in data["input_ids"]]


def hps(checkpoint, base, **options):
    return Hps(HpsConfig(**({"version": "v2"} | options), checkpoint=str(checkpoint), base=str(base)))


def test_embeddings_and_score(data, hps_checkpoint, hps_base, prompts):
    reward, images = hps(hps_checkpoint, hps_base), data.images()
    torch.testing.assert_close(
        reward.network.image_embeds(images), normalize(data["image_features"], dim=-1), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        reward.network.text_embeds(prompts), normalize(data["text_features"], dim=-1), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(reward.score(images, prompts), data["score"], atol=1e-5, rtol=0)


def test_gradient(data, hps_checkpoint, hps_base, prompts, std):
    images = data.images().requires_grad_()
    loss = 1 - hps(hps_checkpoint, hps_base).score(images, prompts)
    torch.testing.assert_close(loss.detach(), data["reno.hps_loss"], atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), images)
    torch.testing.assert_close(gradient * std, data["reno.hps_loss_grad"], atol=1e-5, rtol=1e-4)


def test_version_chooses_the_file(data, hps_checkpoint, hps_base, prompts):
    score = hps(hps_checkpoint, hps_base, version="v2.1").score(data.images(), prompts)
    torch.testing.assert_close(score, -data["score"], atol=1e-5, rtol=0)


def test_safetensors_and_a_file_itself(data, tmp_path, hps_base, prompts):
    file = tmp_path / "HPS_v2_compressed.safetensors"
    save_file(data.below("weights."), file)
    for reference in (file, tmp_path):
        score = hps(reference, hps_base).score(data.images(), prompts)
        torch.testing.assert_close(score, data["score"], atol=1e-5, rtol=0)


def test_wrong_weights_are_reported(data, tmp_path, hps_base):
    file = tmp_path / "HPS_v2_compressed.safetensors"
    weights = data.below("weights.")
    weights["visual.transformer.resblocks.0.attn.extra.weight"] = weights.pop("ln_final.bias")
    save_file(weights, file)
    pattern = r"missing \(text_model.final_layer_norm.bias\); 1 unexpected \(visual.transformer.resblocks.0.attn.extra"
    with pytest.raises(UsageError, match=pattern):
        hps(file, hps_base).score(data.images(), ["t05"] * 3)


def test_absent_file_is_named(tmp_path, hps_base):
    with pytest.raises(UsageError, match=r"HPS_v2_compressed\.safetensors, HPS_v2_compressed\.pt"):
        hps(tmp_path, hps_base).score(torch.rand(1, 3, 8, 8), ["t05"])


@pytest.mark.parametrize("content", [{"state_dict": {"weight": print}}, {"state_dict": {"weight": 1}}, [1, 2]])
def test_pickle_with_more_than_tensors_is_refused(tmp_path, hps_base, content):
    torch.save(content, tmp_path / "HPS_v2_compressed.pt")
    with pytest.raises(UsageError, match=r"plain tensors|other things than tensors"):
        hps(tmp_path, hps_base).score(torch.rand(1, 3, 8, 8), ["t05"])


def test_weights_of_another_size_are_reported(hps_checkpoint, pick_folder):
    with pytest.raises(UsageError, match=r"of another shape \(.*\[24\] for \[20\]"):
        hps(hps_checkpoint, pick_folder).score(torch.rand(1, 3, 8, 8), ["t05"])


def test_base_without_a_config_is_named(hps_checkpoint, tmp_path):
    with pytest.raises(UsageError, match=r"has no config\.json"):
        hps(hps_checkpoint, tmp_path).score(torch.rand(1, 3, 8, 8), ["t05"])


def test_unknown_keys_stay_as_they_are():
    state = {"module.visual.proj": torch.zeros(1), "transformer.resblocks.0.odd.weight": torch.zeros(1)}
    assert to_transformers(state).keys() == state.keys()


def test_token_ids(data, clip_vocabulary):
    """The real CLIP vocabulary, cut down to what these prompts need, ids unchanged."""
    tokenizer = Tokenizer(clip_vocabulary, 77, open_clip_clean)
    for prompt, ids in zip(data.metadata["prompts"], data["tokenizer.ids"], strict=True):
        expected = [i for i in ids.tolist() if i]
        assert tokenizer(prompt) == expected, json.dumps(prompt)
