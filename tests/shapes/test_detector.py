"""The detector is exact on clean renders, and the judge follows GenEval's rules."""

import random

import pytest
import torch

from t2ialign_shapes import detector, judge
from t2ialign_shapes.captions import FAMILIES, hard_negative, parse, sample
from t2ialign_shapes.detector import Detections
from t2ialign_shapes.layout import sample_layout
from t2ialign_shapes.render import render

PER_FAMILY = 100


@pytest.fixture(scope="module")
def world():
    """Pictures of every family with their captions."""
    rng = random.Random(0)
    captions = [sample(rng, family) for family in FAMILIES for _ in range(PER_FAMILY)]
    layout = sample_layout(captions, torch.Generator().manual_seed(0))
    return captions, layout, render(layout)


@pytest.fixture(scope="module")
def found(world):
    """What the detector sees in them."""
    return detector.detect(world[2])


def test_clean_renders_are_judged_right(world, found):
    wanted = judge.require(world[0])
    right = judge.satisfied(found, wanted).view(len(FAMILIES), -1).float().mean(1)
    assert right.mean() >= 0.99
    assert right.min() >= 0.95
    assert judge.grade(found, wanted).mean() >= 0.99


def test_wrong_captions_are_refused(world, found):
    rng = random.Random(1)
    wrong = judge.require([hard_negative(caption, rng) for caption in world[0]])
    assert judge.satisfied(found, wanted=wrong).float().mean() <= 0.003
    assert judge.grade(found, wanted=wrong).mean() < 0.7


def test_check_and_graded_judge_what_is_detected(world, found):
    captions, images = world[0][:32], world[2][:32]
    wanted = judge.require(captions)
    first = Detections(*(getattr(found, name)[:32] for name in Detections.__slots__))
    assert torch.equal(detector.check(images, captions), judge.satisfied(first, wanted))
    assert torch.equal(detector.graded(images, captions), judge.grade(first, wanted))


def test_centers_are_found_within_half_a_pixel(world, found):
    layout = world[1]
    single = slice(0, PER_FAMILY)
    assert found.present[single, 0].all()
    distance = (found.centers[single, 0] - layout.centers[single, 0]).norm(dim=-1)
    assert distance.max() < 0.5


def test_a_result_does_not_depend_on_the_batch(world, found):
    for index in range(0, len(world[0]), 29):
        alone = detector.detect(world[2][index, None])
        for name in Detections.__slots__:
            assert torch.equal(getattr(found, name)[index], getattr(alone, name)[0]), name


def test_an_empty_picture_shows_nothing():
    captions = [parse("a circle"), parse("two circles"), parse("a circle and a square")]
    images = torch.full((3, 3, 32, 32), 0.06)
    assert not detector.check(images, captions).any()
    assert detector.graded(images, captions).tolist() == [0, 0, 0]


def test_noise_and_saturated_pictures_do_not_break_it():
    images = torch.cat([torch.rand(8, 3, 32, 32), torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    assert not detector.check(images, [parse("a red circle")] * 10).any()


def scene(*objects, background=0):
    """Detections of one picture from (shape, colour, x, y) indices."""
    fields = torch.zeros(1, 6, 4)
    for slot, values in enumerate(objects):
        fields[0, slot] = torch.tensor(values)
    present = torch.arange(6)[None] < len(objects)
    shapes, colors = fields[..., 0].long(), fields[..., 1].long()
    return Detections(present, shapes, colors, fields[..., 2:], torch.tensor([background]))


RED_CIRCLE, BLUE_SQUARE = (0, 0, 8.0, 8.0), (1, 2, 24.0, 10.0)


@pytest.mark.parametrize(
    ("text", "objects", "satisfied", "grade"),
    [
        ("a red circle", [RED_CIRCLE], True, 1.0),
        ("a red circle", [RED_CIRCLE, BLUE_SQUARE], True, 0.9),
        ("a green circle", [RED_CIRCLE], False, 0.5),
        ("a circle on a white background", [RED_CIRCLE], False, 0.5),
        ("a red circle and a blue square", [RED_CIRCLE, BLUE_SQUARE], True, 1.0),
        ("a blue circle and a red square", [RED_CIRCLE, BLUE_SQUARE], False, 0.5),
        ("a red circle and a blue square", [RED_CIRCLE], False, 0.5),
        ("a red circle left of a blue square", [RED_CIRCLE, BLUE_SQUARE], True, 1.0),
        ("a red circle right of a blue square", [RED_CIRCLE, BLUE_SQUARE], False, 0.6),
        ("a red circle above a blue square", [RED_CIRCLE, BLUE_SQUARE], False, 0.6),
        ("two red circles", [RED_CIRCLE, RED_CIRCLE], True, 1.0),
        ("two red circles", [RED_CIRCLE], False, 0.5),
        ("two red circles", [RED_CIRCLE, RED_CIRCLE, BLUE_SQUARE], False, 0.9),
    ],
)
def test_the_rules(text, objects, satisfied, grade):
    wanted = judge.require([parse(text)])
    assert judge.satisfied(scene(*objects), wanted).item() is satisfied
    assert judge.grade(scene(*objects), wanted).item() == pytest.approx(grade)


def test_every_picture_against_every_caption(world):
    captions, layout, _ = world
    some = captions[::PER_FAMILY]
    found = judge.expect(layout)
    pairs = judge.matrix(found, judge.require(some))
    assert pairs.shape == (len(captions), len(some))
    for column, caption in enumerate(some):
        alone = judge.satisfied(found, judge.require([caption]))
        assert torch.equal(pairs[:, column], alone)
