"""The on-disk cache of prompt embeddings."""

from __future__ import annotations

import pytest
import torch

from t2ialign.storage.embeds import EmbedsCache, assemble


class Encoder:
    """Rows of len(prompt) tokens; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, prompts):
        self.asked.append(prompts)
        for prompt in prompts:
            yield {"embeds": torch.full((len(prompt), 2), float(len(prompt)), dtype=torch.bfloat16)}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path))
    return tmp_path


def test_only_unknown_prompts_are_encoded_and_only_once():
    encoder, progress = Encoder(), []
    cache = EmbedsCache({"model": "m"})
    rows = cache.fetch(["ab", "abc", "ab"], encoder, lambda done, total: progress.append((done, total)))
    assert [len(row["embeds"]) for row in rows] == [2, 3, 2]
    assert progress == [(1, 2), (2, 2)]
    again = EmbedsCache({"model": "m"}).fetch(["abcd", "abc"], encoder)
    assert encoder.asked == [["ab", "abc"], ["abcd"]]
    assert torch.equal(again[1]["embeds"], rows[1]["embeds"])
    assert again[1]["embeds"].dtype is torch.bfloat16
    cache.fetch(["ab", "abc"], encoder)
    assert len(encoder.asked) == 2  # nothing missing, nothing called


def test_anything_that_changes_an_embedding_changes_the_key():
    encoder = Encoder()
    for identity in ({"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float32", "length": 3}):
        EmbedsCache(identity).fetch(["a"], encoder)
    assert len(encoder.asked) == 3
    EmbedsCache({"length": 3, "dtype": "float32"}).fetch(["a"], encoder)  # the order of the keys says nothing
    assert len(encoder.asked) == 3


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_encoded_again(root, damage):
    encoder = Encoder()
    EmbedsCache({}).fetch(["ab"], encoder)
    (file,) = root.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    rows = EmbedsCache({}).fetch(["ab"], encoder)
    assert rows[0]["embeds"].shape == (2, 2)
    assert len(encoder.asked) == 2
    EmbedsCache({}).fetch(["ab"], encoder)
    assert len(encoder.asked) == 2  # the repaired file is good


def test_an_interrupted_encoding_keeps_what_it_has_and_leaves_no_half_files(root):
    def failing(prompts):
        yield {"embeds": torch.ones(1, 2)}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        EmbedsCache({}).fetch(["a", "b"], failing)
    assert [file.suffix for file in root.rglob("*") if file.is_file()] == [".safetensors"]
    encoder = Encoder()
    EmbedsCache({}).fetch(["a", "b"], encoder)
    assert encoder.asked == [["b"]]


def test_assemble_pads_and_masks():
    rows = [{"text": torch.ones(length, 3), "pooled": torch.zeros(5)} for length in (2, 4)]
    conditioning = assemble(["a", "b"], rows, {"text": "mask"})
    assert conditioning.tensors["text"].shape == (2, 4, 3)
    assert conditioning.tensors["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert (conditioning.tensors["text"].sum((1, 2)) == torch.tensor([6.0, 12.0])).all()
    assert conditioning.tensors["pooled"].shape == (2, 5)
