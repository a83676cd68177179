"""Checkpoints as old repositories have them: pickled weights, and tokenizers of sentencepiece alone."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file
from sd.cases import CASES, PROMPTS, SEEDS, make

from t2ialign import UsageError, checkpoints
from t2ialign_diffusers.folder import fetch

CASE = CASES["pixart-dmd"]
NAME = "diffusion_pytorch_model"


@pytest.fixture
def pickled(build, tmp_path):
    """The tiny student with its weights in a .bin file alone."""
    folder = tmp_path / "student"
    shutil.copytree(build(CASE.family, CASE.scheduler), folder)
    weights = folder / "transformer" / f"{NAME}.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    return folder


def test_weights_in_a_pickle_draw_the_same_images(build, pickled):
    plain, backend = make(CASE, build), make(CASE, build, network_checkpoint=str(pickled))
    conditioning = plain.encode(PROMPTS)
    expected = plain.generate(conditioning, SEEDS, CASE.sampler)
    assert torch.equal(backend.generate(conditioning, SEEDS, CASE.sampler), expected)
    whole = make(CASE, build, checkpoint=str(pickled), network_checkpoint=str(pickled))  # any component may be one
    assert torch.equal(whole.generate(conditioning, SEEDS, CASE.sampler), expected)


def test_a_pickle_that_is_cut_off_or_calls_functions_is_refused(build, pickled, tmp_path):
    file = pickled / "transformer" / f"{NAME}.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(UsageError, match=rf"transformer/{NAME}.bin is truncated or damaged"):
        make(CASE, build, network_checkpoint=str(pickled))

    class Call:
        def __reduce__(self):
            return (open, (str(tmp_path / "made by a pickle"), "w"))

    file.write_bytes(pickle.dumps(Call(), protocol=2))
    with pytest.raises(UsageError, match=r"network_checkpoint: the transformer's weights do not load"):
        make(CASE, build, network_checkpoint=str(pickled)).trainable  # noqa: B018
    assert not (tmp_path / "made by a pickle").exists()


def test_only_components_without_safetensors_are_asked_for_pickles(build, pickled, monkeypatch):
    asked = []

    def resolve(reference, revision, patterns):
        asked.append(list(patterns))
        return pickled

    (pickled / "vae" / f"{NAME}.bin").write_bytes(b"never read")
    for name in ("transformer", "vae"):  # a hub gives nothing that was not asked for: the pickles come second
        (pickled / name / f"{NAME}.bin").rename(pickled / name / "later")
    monkeypatch.setattr(checkpoints, "resolve", resolve)
    fetch("owner/name", None, ["transformer/*.json"], ["transformer", "vae", "scheduler"])
    assert not any(pattern.endswith(".bin") for pattern in asked[0])
    assert asked[1:] == [["transformer/*model.bin", "transformer/*model-*-of-*.bin"]]


def test_a_tokenizer_of_sentencepiece_alone(build, tmp_path):
    import sentencepiece

    folder, text = tmp_path / "checkpoint", tmp_path / "text.txt"
    shutil.copytree(build(CASE.family, CASE.scheduler), folder)
    text.write_text("\n".join(PROMPTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=12,
        model_type="word",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    shutil.copyfile(tmp_path / "spiece.model", folder / "tokenizer" / "spiece.model")
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 16, "extra_ids": 0}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "T5Tokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    embeds = make(CASE, build, checkpoint=str(folder)).encode(PROMPTS).tensors["prompt_embeds"]
    assert embeds.isfinite().all()
    assert not torch.equal(embeds[0, :3], embeds[1, :3])
