"""Preprocessing against torchvision's and the authors' own transforms."""

from __future__ import annotations

import pytest
import torch

from t2ialign_rewards.preprocess import CLIP_MEAN, CLIP_STD, Preprocess, channel_statistics, resize, to_square


@pytest.fixture(scope="module")
def data(golden):
    return golden("preprocess")


def test_standard_transform(data):
    pixels = Preprocess(224)(data["a.input_u8"] / 255)
    torch.testing.assert_close(pixels, data["a.clip224"], atol=1e-6, rtol=0)


def test_close_to_the_eight_bit_path(data):
    pixels = to_square(data["a.input_u8"] / 255, 224).mul(255).round().clamp(0, 255)
    assert (pixels - data["a.pil224_u8"].float()).abs().max() <= 2


def test_gradient(data):
    images = (data["b.input_u8"] / 255).requires_grad_()
    pixels = Preprocess(64)(images)
    torch.testing.assert_close(pixels.detach(), data["b.clip64"], atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(pixels, images, data["b.grad_weights"])
    torch.testing.assert_close(gradient, data["b.grad_input"], atol=1e-5, rtol=0)


def test_letterbox(data):
    pixels = Preprocess(64, "letterbox")(data["b.input_u8"] / 255)
    torch.testing.assert_close(pixels, data["b.hps_letterbox64"], atol=1e-6, rtol=0)


def test_bilinear(data, std):
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    pixels = (resize(data["b.input_u8"] / 255, (64, 115), "bilinear") - mean) / std
    torch.testing.assert_close(pixels, data["b.dav_bilinear64"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (3, 400), (301, 30), (32, 32)])
def test_any_shape_becomes_a_square(mode, size):
    pixels = Preprocess(32, mode)(torch.rand(2, 3, *size))
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.isfinite().all()


@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
def test_modes_agree_on_square_images(mode):
    images = torch.rand(2, 3, 50, 50)
    torch.testing.assert_close(to_square(images, 32, mode), to_square(images, 32, "crop"), atol=0, rtol=0)


def test_statistics_of_the_model_win(tmp_path):
    assert channel_statistics(tmp_path) == {"mean": CLIP_MEAN, "std": CLIP_STD}
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]}')
    assert channel_statistics(tmp_path) == {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0)}
