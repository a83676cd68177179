"""EGGROLL on VAR: the batched population, and what is said about a LoRA that does nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch.nn import functional as F

from t2ialign import LoraConfig, UsageError
from t2ialign.lora import adapter as lora
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.spec.model import Spec
from t2ialign.testing import installed
from t2ialign_var import layers
from t2ialign_var.backend import VarBackend
from t2ialign_var.config import VarConfig

pytest.importorskip("t2ialign_eggroll")
import t2ialign_eggroll.plugin
import t2ialign_var.plugin
from t2ialign_eggroll.noise import Members, Noise
from t2ialign_eggroll.population import Chunk, lora_population


@pytest.mark.parametrize("guidance", [4.0, 0.0])
@pytest.mark.parametrize("form", ["auto", "materialised", "factored"])
@torch.no_grad()
def test_a_batched_population_equals_its_members_one_by_one(checkpoint: Path, form: Any, guidance: float) -> None:
    config = VarConfig(checkpoint=str(checkpoint), dtype="float32", guidance_scale=guidance, top_k=16)
    backend = VarBackend(config)
    adapter = lora.Adapter(backend.trainable, LoraConfig(rank=2), config.lora_targets())
    factors = adapter.parameters()
    noise = Members(4).draw(Noise({name: p.shape for name, p in factors.items()}, 1).of(0, 0), slice(0, 4))
    noise = {name: e.select(torch.arange(4), torch.full((4,), 0.3)) for name, e in noise.items()}
    conditioning, seeds = backend.encode(["ant", "bee"]), [5, 6]
    base = backend.generate(conditioning, seeds)
    with lora_population(adapter.layers, noise, Chunk(4, 2), form):
        batched = backend.generate(conditioning[[0, 1] * 4], seeds * 4)
    for member in range(4):
        kept = {name: p.clone() for name, p in factors.items()}
        for name, p in factors.items():
            p.copy_(kept[name] + noise[name].dense()[member])
        single = backend.generate(conditioning, seeds)
        for name, p in factors.items():
            p.copy_(kept[name])
        torch.testing.assert_close(batched[2 * member : 2 * member + 2], single, rtol=0, atol=1e-4)
        assert not torch.allclose(single, base)


@pytest.fixture
def eggroll_spec(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Spec]]:
    """EGGROLL on the tiny VAR with the toy rewards."""
    (tmp_path / "prompts.txt").write_text("0\na photo of bee\ncat\n")

    def make(**backend: Any) -> Spec:
        tree = {
            "run": {"steps": 3, "out": str(tmp_path / "runs"), "device": "cpu"},
            "backend": {"kind": "var", "checkpoint": str(checkpoint), "dtype": "float32", "top_k": 16, **backend},
            "optimizer": {"kind": "eggroll", "population": 4, "sigma": 0.2, "learning_rate": 0.2},
            "reward": [{"kind": "toy-redness"}],
            "prompts": {"file": "prompts.txt", "per_step": 3},
        }
        path = tmp_path / "spec.toml"
        path.write_text(tomli_w.dumps(tree))
        return specs.load(path)

    with installed(t2ialign_var.plugin, t2ialign_eggroll.plugin):
        yield make


def test_a_run_ends_with_a_checked_export(eggroll_spec: Callable[..., Spec]) -> None:
    run = runner.start(eggroll_spec(), Display(quiet=True))
    assert (run.path / "export" / "pytorch_lora_weights.safetensors").is_file()
    assert "VarBackend" in (run.path / "export" / "README.md").read_text()
    summary = json.loads((run.path / "evaluation" / "summary.json").read_text())
    assert summary["images"] == 3
    assert summary["variants"]["tuned"]["toy-redness"]["mean"] != summary["variants"]["base"]["toy-redness"]["mean"]


def test_a_layer_that_the_model_bypasses_is_reported_before_the_first_step(
    eggroll_spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in implementations that read the fused weight instead of calling the layer."""
    forward = layers.SelfAttention.forward

    def bypassing(self: layers.SelfAttention, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        weight = self.mat_qkv.weight
        linear, self.__dict__["mat_qkv"] = self.mat_qkv, lambda x: F.linear(x, weight)
        self.mat_qkv.weight = weight  # type: ignore[attr-defined]
        try:
            return forward(self, x, *args, **kwargs)
        finally:
            del self.__dict__["mat_qkv"]
            assert self.mat_qkv is linear

    monkeypatch.setattr(layers.SelfAttention, "forward", bypassing)
    spec = eggroll_spec(lora={"targets": ["mat_qkv", "fc1"]})
    with pytest.raises(UsageError, match=r"mat_qkv"):
        runner.start(spec, Display(quiet=True))
