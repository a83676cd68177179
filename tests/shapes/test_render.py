"""Layouts obey their captions, and pictures depend on nothing but the layout."""

import random

import pytest
import torch

from t2ialign_shapes import judge
from t2ialign_shapes.captions import FAMILIES, sample
from t2ialign_shapes.layout import sample_layout
from t2ialign_shapes.render import coverage, render
from t2ialign_shapes.world import BACKGROUND_RGB, OBJECT_RGB, SIZE


def draw(family, count=100, seed=0):
    rng = random.Random(seed)
    captions = [sample(rng, family) for _ in range(count)]
    return captions, sample_layout(captions, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_satisfy_their_captions(family):
    captions, layout = draw(family)
    assert judge.satisfied(judge.expect(layout), judge.require(captions)).all()


def test_images_are_in_range_and_repeat_with_the_seed():
    first, again, other = (render(draw(None, seed=seed)[1]) for seed in (1, 1, 2))
    assert first.shape == (100, 3, SIZE, SIZE)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_objects_cover_the_area_of_their_shape():
    _, layout = draw("single_object")
    area = coverage(layout).sum((2, 3))[:, 0]
    radius = layout.radii[:, 0]
    factor = torch.tensor([torch.pi, 1.78**2, 1.8])[layout.shapes[:, 0]]
    torch.testing.assert_close(area, factor * radius**2, rtol=0.03, atol=1.0)


def test_contrast_mixes_objects_with_the_background():
    _, layout = draw("single_object", count=1)
    layout.contrast = torch.tensor([0.25])
    x, y = layout.centers[0, 0].long().tolist()
    background = BACKGROUND_RGB[layout.background[0]]
    expected = background + 0.25 * (OBJECT_RGB[layout.colors[0, 0]] - background)
    torch.testing.assert_close(render(layout)[0, :, y, x], expected)
