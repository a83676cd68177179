"""JPEG size: DDPO's numbers, within what JPEG libraries differ."""

from __future__ import annotations

import pytest
import torch

from t2ialign_rewards.config import JpegConfig
from t2ialign_rewards.jpeg import JpegCompressibility, JpegIncompressibility


@pytest.fixture(scope="module")
def data(golden):
    return golden("jpeg")


def test_sizes(data):
    images = data["images_u8"] / 255
    for kind, name in ((JpegIncompressibility, "incompressibility"), (JpegCompressibility, "compressibility")):
        scores = kind(JpegConfig()).score(images, [""] * 4)
        torch.testing.assert_close(scores, data[name].float(), rtol=0.01, atol=0)


def test_pixels_are_rounded(data):
    scores = JpegIncompressibility(JpegConfig()).score(data["float_image"], [""])
    torch.testing.assert_close(scores, data["float_image_incompressibility"].float(), rtol=0.01, atol=0)


def test_per_megapixel(data):
    images = data["images_u8"] / 255
    plain, relative = (
        JpegIncompressibility(JpegConfig(per_megapixel=flag)).score(images, [""] * 4) for flag in (False, True)
    )
    torch.testing.assert_close(relative, plain / (64 * 64 / 1e6))


def test_quality(data):
    images = data["images_u8"] / 255
    low, high = (JpegIncompressibility(JpegConfig(quality=quality)).score(images, [""] * 4) for quality in (20, 95))
    assert (low <= high).all()
    assert low.sum() < high.sum()


def test_encoding_begins_while_other_rewards_work():
    """The same scores, whether or not they were begun, and never those of other images."""
    images = torch.rand(5, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    others = 1 - images
    reward = JpegCompressibility(JpegConfig())
    expected = JpegCompressibility(JpegConfig()).score(images, [""] * 5)
    reward.begin(images, [""] * 5)
    assert torch.equal(reward.score(images, [""] * 5), expected)
    reward.begin(others, [""] * 5)
    assert torch.equal(reward.score(images, [""] * 5), expected)
