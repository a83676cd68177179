"""Tiny Infinities with recorded answers, as modules and as a checkpoint folder with a tiny T5."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2ialign_infinity.backend import VAE_IGNORED, InfinityBackend
from t2ialign_infinity.bits import BitQuantiser
from t2ialign_infinity.config import InfinityConfig
from t2ialign_infinity.rope import rotation
from t2ialign_infinity.transformer import InfinityTransformer
from t2ialign_infinity.vae import BitVAE
from t2ialign_var.loading import fill

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = ["a", "red", "fox", "in", "the", "snow", "two", "blue", "cats", "grass", "old", "man", "with", "hat"]


def strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def sizes_of(recorded: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The recorded hyper-parameters under our names."""
    patchify = bool(recorded["apply_spatial_patchify"])
    return {
        "transformer": {
            "bits": recorded["codebook_dim"] * (4 if patchify else 1),
            "depth": recorded["depth"],
            "width": recorded["embed_dim"],
            "heads": recorded["num_heads"],
            "chunks": recorded["block_chunks"],
            "text_channels": recorded["text_channels"],
            "text_length": recorded["text_maxlen"],
        },
        "vae": {
            "bits": recorded["codebook_dim"],
            "ch": recorded["vae_base_ch"],
            "ch_mult": recorded["vae_ch_mult"],
            "num_res_blocks": recorded["vae_num_res_blocks"],
            "patchify": patchify,
        },
    }


def load_golden(name: str) -> SimpleNamespace:
    path = GOLDEN / f"{name}.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as stream:
        recorded = json.loads(stream.metadata()["config"])
    sizes = sizes_of(recorded)
    with torch.device("meta"):
        transformer, vae = InfinityTransformer(**sizes["transformer"]), BitVAE(**sizes["vae"])
    io = strip(tensors, "io.")
    lengths = io["text.lens"].tolist()
    text = torch.nn.utils.rnn.pad_sequence(io["text.kv_compact"].split(lengths), batch_first=True)
    ladder = tuple((h, w) for h, w in recorded["scale_schedule"])
    reference = tuple(recorded["rope_reference_schedule"][-1])
    return SimpleNamespace(
        transformer=fill(transformer, strip(tensors, "infinity."), name),
        vae=fill(vae, strip(tensors, "vae."), name, ignored=VAE_IGNORED),
        quantiser=BitQuantiser(recorded["codebook_dim"], ladder, sizes["vae"]["patchify"]),
        rotation=rotation(ladder, reference, recorded["embed_dim"] // recorded["num_heads"]),
        text=(text, torch.tensor([[place < n for place in range(max(lengths))] for n in lengths])),
        recorded=recorded,
        sizes=sizes,
        io=io,
        tensors=tensors,
    )


@pytest.fixture(scope="session", params=["infinity_tiny", "infinity_tiny_patchify"])
def golden(request: pytest.FixtureRequest) -> SimpleNamespace:
    """transformer, vae, quantiser, rotation, text, and ``io``: what the original code answered."""
    return load_golden(request.param)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny patchified Infinity as a folder."""
    tiny = load_golden("infinity_tiny_patchify")
    folder = tmp_path_factory.mktemp("tiny-infinity")
    save_file(strip(tiny.tensors, "infinity."), folder / "infinity.safetensors")
    save_file(strip(tiny.tensors, "vae."), folder / "vae.safetensors")
    tiny.sizes["transformer"]["scales"] = 5
    (folder / "config.json").write_text(json.dumps(tiny.sizes))
    return folder


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 encoder with random weights, and its tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("tiny-t5")
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=128,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5EncoderModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture
def config(checkpoint: Path, text_encoder: Path) -> Any:
    def make(**options: Any) -> InfinityConfig:
        files = {"checkpoint": str(checkpoint), "text_encoder": str(text_encoder)}
        tiny = {"dtype": "float32", "text_dtype": "float32", "aspect_ratio": 1.5}
        return InfinityConfig.model_validate(files | tiny | options)

    return make


@pytest.fixture
def backend(config: Any) -> InfinityBackend:
    return InfinityBackend(config())
