"""Token ids are fixed for ever: every checkpoint depends on them."""

import pytest

from t2ialign_shapes.captions import FAMILIES, enumerate_captions
from t2ialign_shapes.tokenizer import MAX_LENGTH, VOCABULARY, build_tokenizer

IDS = {
    "<pad>": 0,
    "<bos>": 1,
    "<unk>": 2,
    "<eos>": 3,
    "a": 4,
    "two": 5,
    "three": 6,
    "four": 7,
    "circle": 8,
    "square": 9,
    "triangle": 10,
    "circles": 11,
    "squares": 12,
    "triangles": 13,
    "red": 14,
    "green": 15,
    "blue": 16,
    "yellow": 17,
    "purple": 18,
    "cyan": 19,
    "and": 20,
    "left": 21,
    "right": 22,
    "of": 23,
    "above": 24,
    "below": 25,
    "on": 26,
    "black": 27,
    "white": 28,
    "background": 29,
}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_the_ids(tokenizer):
    assert tokenizer.get_vocab() == IDS
    assert tuple(IDS) == VOCABULARY
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 3)


def test_a_prompt_becomes_begin_words_end_padding(tokenizer):
    tokens = tokenizer("A red Circle", padding="max_length", max_length=8)
    assert tokens["input_ids"] == [1, 4, 14, 8, 3, 0, 0, 0]
    assert tokens["attention_mask"] == [1, 1, 1, 1, 1, 0, 0, 0]


def test_every_caption_is_known_and_short_enough(tokenizer):
    texts = [str(caption) for family in FAMILIES for caption in enumerate_captions(family)]
    ids = tokenizer(texts)["input_ids"]
    assert max(map(len, ids)) <= MAX_LENGTH
    assert not any(tokenizer.unk_token_id in row for row in ids)
