"""The tiny VAR with recorded answers, as a module and as a checkpoint folder."""

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

from t2ialign_var.backend import TRANSFORMER_IGNORED, VQVAE_IGNORED, VarBackend
from t2ialign_var.config import VarConfig
from t2ialign_var.loading import fill
from t2ialign_var.transformer import VarTransformer
from t2ialign_var.vqvae import VQVAE

GOLDEN = Path(__file__).parents[1] / "golden"


def strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def sizes_of(recorded: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The recorded hyper-parameters under our names."""
    return {
        "transformer": {
            "patch_nums": recorded["patch_nums"],
            "codes": recorded["vocab_size"],
            "code_channels": recorded["z_channels"],
            "classes": recorded["num_classes"],
            "depth": recorded["depth"],
            "width": recorded["embed_dim"],
            "heads": recorded["num_heads"],
        },
        "vqvae": {
            "codes": recorded["vocab_size"],
            "z_channels": recorded["z_channels"],
            "ch": recorded["ch"],
            "ch_mult": recorded["ch_mult"],
            "num_res_blocks": recorded["num_res_blocks"],
            "phis": recorded["share_quant_resi"],
        },
    }


@pytest.fixture(scope="session")
def golden() -> SimpleNamespace:
    """transformer, vqvae, and ``io``: what the original code answered."""
    path = GOLDEN / "var_tiny.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as stream:
        sizes = sizes_of(json.loads(stream.metadata()["config"]))
    with torch.device("meta"):
        transformer = VarTransformer(**sizes["transformer"])
        vqvae = VQVAE(sizes["transformer"]["patch_nums"], **sizes["vqvae"])
    return SimpleNamespace(
        transformer=fill(transformer, strip(tensors, "var."), "golden", ignored=TRANSFORMER_IGNORED),
        vqvae=fill(vqvae, strip(tensors, "vae."), "golden", ignored=VQVAE_IGNORED),
        sizes=sizes,
        io=strip(tensors, "io."),
        tensors=tensors,
    )


@pytest.fixture(scope="session")
def checkpoint(golden: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny VAR as a folder with its own classes."""
    folder = tmp_path_factory.mktemp("tiny-var")
    save_file(strip(golden.tensors, "var."), folder / "var.safetensors")
    save_file(strip(golden.tensors, "vae."), folder / "vae.safetensors")
    (folder / "config.json").write_text(json.dumps(golden.sizes))
    names = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
    (folder / "classes.json").write_text(json.dumps(names))
    return folder


@pytest.fixture
def backend(checkpoint: Path) -> VarBackend:
    return VarBackend(VarConfig(checkpoint=str(checkpoint), dtype="float32", top_k=16))
