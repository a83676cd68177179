"""ImageReward against its own code, through the released key layout."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from t2ialign import UsageError
from t2ialign_rewards.config import ImageRewardConfig
from t2ialign_rewards.imagereward import ImageReward


class TinyImageReward(ImageReward):
    """The golden model's numbers of heads."""

    vision_heads = 4
    text_heads = 4


@pytest.fixture(scope="module")
def data(golden):
    return golden("imagereward")


@pytest.fixture(scope="module")
def prompts(data):
    rows = zip(data["input_ids"], data["attention_mask"], strict=True)
    return [" ".join(f"t{int(i):02d}" for i in ids[mask.bool()][1:-1]) for ids, mask in rows]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, data, write_tokenizer):
    folder = tmp_path_factory.mktemp("bert")
    ids, last = data["input_ids"][0], int(data["attention_mask"][0].sum()) - 1
    write_tokenizer(folder, 64, limit=512, begin=int(ids[0]), end=int(ids[last]))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("imagereward") / "ImageReward.pt"
    torch.save(data.below("weights."), file)
    return file


@pytest.fixture(scope="module")
def reward(checkpoint, tokenizer):
    return TinyImageReward(ImageRewardConfig(checkpoint=str(checkpoint.parent), tokenizer=str(tokenizer)))


def test_image_tokens(data, reward):
    network = reward.network
    tokens = network.vision(pixel_values=network.preprocess(data.images())).last_hidden_state
    torch.testing.assert_close(tokens, data["image_embeds"], atol=1e-5, rtol=0)


def test_tokens(data, reward, prompts):
    ids, mask = reward.network.tokenize(prompts, torch.device("cpu"))
    assert mask.equal(data["attention_mask"])
    assert (ids * mask).equal(data["input_ids"] * mask)


def test_score_and_gradient(data, reward, prompts, std):
    images = data.images().requires_grad_()
    score = reward.score(images, prompts)
    torch.testing.assert_close(score.detach(), data["score"], atol=1e-5, rtol=0)
    torch.testing.assert_close((2 - score).detach(), data["reno.imagereward_loss"], atol=1e-5, rtol=0)
    torch.testing.assert_close((2 - score).relu().detach(), data["refl.loss"], atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(-score.sum(), images)
    torch.testing.assert_close(gradient * std, data["reno.imagereward_loss_grad"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "lost", ["blip.text_encoder.encoder.layer.1.output.dense.bias", "blip.visual_encoder.pos_embed"]
)
def test_missing_weights_are_reported(data, tmp_path, tokenizer, lost):
    file = tmp_path / "ImageReward.safetensors"
    weights = data.below("weights.")
    del weights[lost]
    save_file(weights, file)
    reward = TinyImageReward(ImageRewardConfig(checkpoint=str(file), tokenizer=str(tokenizer)))
    with pytest.raises(UsageError, match=r"layer\.1\.output\.dense\.bias|position_embedding"):
        reward.score(data.images(), ["t05"] * 3)


def test_foreign_weights_are_reported(data, tmp_path, tokenizer):
    file = tmp_path / "ImageReward.safetensors"
    save_file(data.below("weights.") | {"blip.itm_head.weight": torch.zeros(1)}, file)
    reward = TinyImageReward(ImageRewardConfig(checkpoint=str(file), tokenizer=str(tokenizer)))
    with pytest.raises(UsageError, match=r"blip\.itm_head\.weight"):
        reward.score(data.images(), ["t05"] * 3)
