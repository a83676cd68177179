"""The grammar: every caption reads back as itself, and nothing else is read."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ialign_shapes.captions import (
    FAMILIES,
    Caption,
    Thing,
    enumerate_captions,
    hard_negative,
    parse,
    sample,
    to_text,
)

FAMILY_SIZES = dict(zip(FAMILIES, (9, 18, 189, 54, 2232, 540), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_caption_reads_back_as_itself(family):
    captions = list(enumerate_captions(family))
    assert len(captions) == len(set(captions)) == FAMILY_SIZES[family]
    for caption in captions:
        assert parse(to_text(caption)) == caption
        assert caption.family == family


def test_a_caption_says_what_it_reads_like():
    caption = parse("a red circle left of a blue square on a black background")
    assert caption == Caption((Thing("circle", "red"), Thing("square", "blue")), "left of", "black")
    assert parse("Three  cyan TRIANGLES").objects == (Thing("triangle", "cyan"),) * 3


@given(st.integers(0, 2**32))
def test_samples_and_hard_negatives_are_captions(seed):
    rng = random.Random(seed)
    caption = sample(rng)
    negative = hard_negative(caption, rng)
    assert parse(to_text(caption)) == caption
    assert parse(to_text(negative)) == negative
    assert negative != caption
    assert negative.family == caption.family


@pytest.mark.parametrize(
    "text",
    [
        "",
        "circle",
        "a pink circle",
        "a circles",
        "two circle",
        "five circles",
        "a circle and a circle",
        "a red circle and a square",
        "a red circle and a red square",
        "two circles and a square",
        "a circle on a gray background",
        "a circle, a square",
        "a photo of a circle",
    ],
)
def test_other_texts_are_refused_by_name(text):
    with pytest.raises(ValueError, match="not a caption of the shapes world") as error:
        parse(text)
    assert repr(text) in str(error.value)
