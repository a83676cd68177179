"""The on-disk cache of prompt embeddings."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from t2ialign.spec import checkpoints
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


@pytest.mark.parametrize("unusable", ["other names", "nan", "folder", "other numbers", "another prompt's"])
def test_a_file_of_another_layout_is_written_anew(root, unusable):
    encoder = Encoder()
    EmbedsCache({}, ["embeds"]).fetch(["ab"], encoder)
    (file,) = root.rglob("*.safetensors")
    if unusable == "folder":
        file.unlink()
        (file / "inside").mkdir(parents=True)
    elif unusable == "another prompt's":
        EmbedsCache({}, ["embeds"]).fetch(["cd"], Encoder())
        (other,) = set(root.rglob("*.safetensors")) - {file}
        other.replace(file)
    else:
        name, value = {"other names": ("pooled", 1.0), "nan": ("embeds", torch.nan)}.get(unusable, ("embeds", 1.0))
        save_file({name: torch.full((2, 2), value)}, file)
    for _ in range(2):
        rows = EmbedsCache({}, ["embeds"]).fetch(["ab"], encoder)
        assert torch.equal(rows[0]["embeds"].float(), torch.full((2, 2), 2.0))
    assert len(encoder.asked) == 2  # the second time, it is good


def test_a_cache_that_cannot_be_written_is_one_warning(root, monkeypatch, caplog):
    monkeypatch.setenv("T2IALIGN_CACHE", "/proc/no/cache")
    rows = EmbedsCache({}).fetch(["ab", "abc"], Encoder())
    EmbedsCache({"other": 1}).fetch(["ab", "abc"], Encoder())
    assert [len(row["embeds"]) for row in rows] == [2, 3]
    assert len(caplog.records) == 1
    assert "/proc/no/cache cannot be written" in caplog.text
    assert "T2IALIGN_CACHE" in caplog.text


def test_a_full_disk_leaves_no_half_files(root, monkeypatch, caplog):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert len(EmbedsCache({}).fetch(["ab"], Encoder())) == 1
    assert "No space left" in caplog.text
    assert not [file for file in root.rglob("*") if file.is_file()]


def test_an_encoder_is_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "WHOLE", 2**10)
    folder = tmp_path / "model" / "encoder"
    folder.mkdir(parents=True)
    weights = torch.zeros(2**16)

    def seen(**tensors):
        save_file(tensors, folder / "model.safetensors")
        os.utime(folder / "model.safetensors", (0, 0))
        return checkpoints.fingerprint(tmp_path / "model", ["encoder"])

    first = seen(a=weights)
    os.utime(folder / "model.safetensors", (9, 9))
    assert checkpoints.fingerprint(tmp_path / "model", ["encoder"]) == first  # a copy is the same encoder
    assert seen(a=weights + 1e-3) != first  # of one size and time
    assert seen(b=weights) != first
    assert seen(a=weights) == first


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
