"""The aesthetic predictor: both published heads, and end to end against DAV's differentiable scorer."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

from t2ialign import UsageError
from t2ialign_rewards.aesthetic import Aesthetic, load_head
from t2ialign_rewards.config import AestheticConfig


@pytest.fixture(scope="module")
def data(golden):
    return golden("aesthetic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """A whole CLIP model on disk: the text side is there and must not matter."""
    from transformers import CLIPConfig

    folder = tmp_path_factory.mktemp("aesthetic")
    sizes = data.metadata["dav_vision"]
    CLIPConfig(vision_config=sizes, projection_dim=sizes["projection_dim"]).save_pretrained(folder)
    weights = data.below("dav.weights.") | {"logit_scale": torch.zeros(()), "text_model.anything": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("name", "key"), [("sac+logos+ava1", "sac_logos_ava1"), ("ava+logos", "ava_logos")])
def test_published_heads(data, name, key):
    torch.testing.assert_close(load_head(name)(data["embeddings"]), data[f"{key}.score"], atol=1e-5, rtol=0)


def test_end_to_end(data, folder):
    reward = Aesthetic(AestheticConfig(model=str(folder), resize="stretch", interpolation="bilinear"))
    images = (data["dav.images_u8"] / 255).requires_grad_()
    score = reward.score(images, ["", ""])
    torch.testing.assert_close(score.detach(), data["dav.score"], atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    torch.testing.assert_close(gradient, data["dav.score_sum_grad"], atol=1e-5, rtol=1e-4)


def official_head(width: int = 768) -> nn.Sequential:
    """The predictor's five layers with the released module numbers."""
    sizes = [(width, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    first, second, third, fourth, fifth = (nn.Linear(*size) for size in sizes)
    drop = nn.Dropout(0.2)
    return nn.Sequential(first, drop, second, drop, third, drop, fourth, fifth).eval()


def test_official_file_is_multiplied_out(tmp_path):
    head = official_head()
    file = tmp_path / "head-linearMSE.pth"
    torch.save({f"layers.{key}": value for key, value in head.state_dict().items()}, file)
    embeddings = normalize(torch.randn(5, 768), dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(load_head(str(file))(embeddings), head(embeddings)[:, 0], atol=1e-5, rtol=0)


def test_relu_head_is_refused(tmp_path):
    file = tmp_path / "head-reluMSE.pth"
    torch.save({f"layers.{i}.weight": torch.zeros(1, 1) for i in (0, 3, 6, 9, 11)}, file)
    with pytest.raises(UsageError, match=r"missing .*unexpected \(layers.11.weight, layers.3.weight"):
        load_head(str(file))


def test_unknown_heads():
    with pytest.raises(ValidationError, match="head"):
        AestheticConfig(head="sac")
    with pytest.raises(UsageError, match="no such file"):
        load_head("absent.pth")
