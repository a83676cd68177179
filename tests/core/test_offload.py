"""Offloaded weights in whole runs, and what validation says about them."""

from __future__ import annotations

import pytest
import torch
from worlds import WORLD

from t2ialign.errors import SpecError
from t2ialign.lora.adapter import Adapter, move_adapters
from t2ialign.problem.export import check_export, write_export
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs


def one_step(path, *overrides):
    """The problem of the smallest real run after its step."""
    path.write_text(WORLD.replace("shapes-graded", "jpeg-compressibility"))
    problem = assemble(specs.load(path, overrides), report=lambda text: None)
    load_optimizer(problem).step(0)
    return problem


def test_a_population_is_evaluated_and_exported_as_without(tmp_path, shelved):
    plain = one_step(tmp_path / "spec.toml").adapter.parameters()
    problem = one_step(tmp_path / "spec.toml", "backend.offload=blocks")
    assert any(p.any() for name, p in plain.items() if "lora_B" in name)
    for name, parameter in problem.adapter.parameters().items():
        assert torch.equal(parameter, plain[name])
    assert len(shelved) > 20
    write_export(problem, tmp_path / "export")
    check_export(problem, tmp_path / "export")


@pytest.mark.parametrize("name", ["reno-shapes", "dav-shapes"])
def test_gradients_need_weights_that_come_back(name):
    def load(*overrides):
        return specs.load(specs.Path(f"specs/{name}.toml"), overrides)

    for lost in (["backend.offload=model"], ["backend.offload=blocks"]):
        with pytest.raises(SpecError, match=r"'differentiable' is lost by the backend's options: set offload = 'none'"):
            load(*lost)
    load("backend.offload=blocks", "backend.gradient_checkpointing=['network']")


def test_full_weights_cannot_evolve_while_they_wait(tmp_path):
    (tmp_path / "spec.toml").write_text(WORLD)
    with pytest.raises(SpecError, match="'weights' is lost by the backend's options: set offload = 'none'"):
        specs.load(tmp_path / "spec.toml", ["backend.offload=model", "optimizer.parameters=weights"])


def test_lora_factors_do_not_wait_with_the_weights(tmp_path):
    problem = one_step(tmp_path / "spec.toml")
    network: Adapter = problem.adapter
    move_adapters(network.module, torch.device("meta"))
    assert all(layer.lora_B["default"].weight.is_meta for layer in network.layers.values())
