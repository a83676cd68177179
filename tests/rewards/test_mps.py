"""MPS against its own code, stage by stage."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from t2ialign import UsageError
from t2ialign_rewards.config import MpsConfig
from t2ialign_rewards.mps import Mps, relevance_bias


@pytest.fixture(scope="module")
def data(golden):
    return golden("mps")


@pytest.fixture(scope="module")
def prompts(data, words):
    return [words(ids) for ids in data["input_ids"]]


@pytest.fixture(scope="module")
def base(tmp_path_factory, data, write_clip_base):
    return write_clip_base(tmp_path_factory.mktemp("base"), data.metadata["clip"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("mps") / "MPS_overall.safetensors"
    save_file(data.below("weights."), file)
    return file


@pytest.fixture
def mps(data, checkpoint, base):
    def build(**options):
        reward = Mps(MpsConfig(checkpoint=str(checkpoint), base=str(base), condition="the condition", **options))
        network = reward.network
        # The golden condition has neither begin nor end token, so no text of the tiny vocabulary gives it.
        ids, tokenize = data["condition_ids"][0].tolist(), network.tokenizer
        network.tokenizer = lambda text: ids if text == "the condition" else tokenize(text)
        return reward

    return build


def test_tokens(data, mps, prompts):
    network = mps().network
    tokens, pooled = zip(*map(network.text_tokens, prompts), strict=True)
    torch.testing.assert_close(torch.stack(tokens), data["text_tokens"], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.stack(pooled), data["text_eos"], atol=1e-5, rtol=0)
    torch.testing.assert_close(network.image_tokens(data.images()), data["image_tokens"], atol=1e-5, rtol=0)


def test_relevance(data):
    most = data["relevance_raw"].amax(dim=-1, keepdim=True)
    torch.testing.assert_close(data["relevance_raw"] / most, data["relevance_per_sample"], atol=1e-6, rtol=0)
    kept = relevance_bias(data["relevance_raw"], 0.3) == 0
    assert kept.equal(data["relevance_per_sample"] > 0.3)


def test_no_positive_relevance_keeps_every_token():
    assert relevance_bias(-torch.rand(2, 5), 0.3).eq(0).all()


def test_cross_tokens(data, mps):
    network = mps().network
    bias = relevance_bias(data["relevance_raw"], 0.3)
    tokens = network.cross(data["image_tokens"], data["text_tokens"], bias)
    torch.testing.assert_close(tokens, data["cross_tokens_thr0.3"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.3, 0.01])
def test_score(data, mps, prompts, threshold):
    score = mps(threshold=threshold).score(data.images(), prompts)
    torch.testing.assert_close(score, data[f"score_thr{threshold}"], atol=1e-4, rtol=0)


def test_wrong_weights_are_reported(data, tmp_path, base):
    def failing(weights):
        save_file(weights, tmp_path / "MPS_overall.safetensors")
        reward = Mps(MpsConfig(checkpoint=str(tmp_path), base=str(base)))
        with pytest.raises(UsageError) as error:
            reward.score(data.images()[:1], ["t05"])
        return str(error.value)

    weights = data.below("weights.")
    assert "unexpected (other)" in failing(weights | {"other.weight": torch.zeros(1)})
    assert "layers.1.1.fn.norm.bias" in failing(
        {key: value for key, value in weights.items() if key != "cross_model.layers.1.1.fn.norm.bias"}
    )
    key = "cross_model.layers.1.0.fn.to_q.weight"
    assert "do not fit MPS" in failing(weights | {key: weights[key][:-1].clone()})
