"""Compiled networks give what plain ones give, see every change of their weights, and stop compiling."""

from __future__ import annotations

import os
import shutil
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from worlds import WORLD

from t2ialign import SpecError, UsageError
from t2ialign.config import LoraConfig
from t2ialign.lora.adapter import Adapter
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.spec import parse as specs
from t2ialign_diffusers import compilation
from t2ialign_diffusers.compilation import compile_blocks, compile_forward
from t2ialign_diffusers.recompute import recompute_blocks
from t2ialign_eggroll.noise import LowRank
from t2ialign_eggroll.population import Chunk, lora_population


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return (x,)


@pytest.fixture
def graphs(monkeypatch):
    """Compile by doing nothing to the graph, and collect the graphs."""
    found = []

    def collect(graph, inputs, **options):
        found.append(graph)
        return graph

    torch.compiler.reset()
    monkeypatch.setattr(compilation, "BACKEND", collect)
    return found


def compiled(mode="default"):
    module = Stack()
    compile_forward(module, mode)
    return module


def test_the_module_keeps_class_names_and_outputs(graphs):
    module, plain, x = compiled(), Stack(), torch.randn(3, 8)
    assert type(module) is Stack
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(module(x)[0], plain(x)[0])
    assert len(graphs) == 1


def test_weights_changed_in_place_or_exchanged_are_seen_without_compiling_again(graphs):
    module, x = compiled(), torch.randn(3, 8)
    before = module(x)[0]
    with torch.no_grad():
        module.layers[0].weight.mul_(2)
    assert not torch.allclose(module(x)[0], before)
    module.layers[0].weight.data = module.layers[0].weight.data / 2
    assert torch.equal(module(x)[0], before)
    assert len(graphs) == 1


def test_hooks_on_inner_layers_are_called(graphs):
    """By torch.compile alone they would not be, once the module has been compiled."""
    module, x, seen = compiled(), torch.randn(3, 8), []
    expected = module(x)[0]
    handle = module.layers[1].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    assert torch.equal(module(x)[0], expected)
    handle.remove()
    module(x)
    assert len(seen) == len(graphs) == 1


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_outputs_that_the_next_call_may_overwrite_are_copied(monkeypatch, mode):
    """What a CUDA graph does to its outputs: every call gives the same memory."""
    memory = torch.empty(3, 8)
    monkeypatch.setattr(torch, "compile", lambda forward, **options: lambda x: (memory.copy_(forward(x)[0]),))
    module = compiled(mode)
    x = torch.randn(3, 8)
    first = module(x)[0]
    module(-x)
    assert torch.equal(first, Stack()(x)[0])


def test_more_than_one_graph_is_an_error_where_one_is_asked_for(graphs):
    class Broken(Stack):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            torch._dynamo.graph_break()
            return super().forward(x)

    x = torch.randn(3, 8)
    module = Broken()
    compile_forward(module, "default")
    assert torch.equal(module(x)[0], Stack()(x)[0])
    torch.compiler.reset()  # what is compiled is kept by code, whatever was asked for
    module = Broken()
    compile_forward(module, "default", fullgraph=True)
    with pytest.raises(UsageError, match=r"backend\.compile_fullgraph: Broken cannot be compiled as one graph"):
        module(x)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients(monkeypatch, recompute):
    torch.compiler.reset()
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    module, plain = Stack(), Stack()
    if recompute:
        recompute_blocks(module)
    compile_forward(module, "default")
    gradients = []
    for network in (module, plain):
        x = torch.linspace(-1, 1, 24).view(3, 8).requires_grad_()
        network(x)[0].square().sum().backward()
        gradients.append((x.grad, network.layers[0].weight.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x) * scale))


class Tower(nn.Module):
    """Three blocks over a batch of sequences; the first one sees strides of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.mT
        for block in self.blocks:
            x = block(x, scale=torch.ones(len(x), 1, 1))
        return x


@torch.no_grad()
def test_one_block_is_compiled_for_all_blocks_and_all_sizes_of_a_batch(graphs):
    """Eight is also a width: that must not fix it."""
    tower, plain = Tower(), Tower()
    assert compile_blocks(tower, "default") == 3
    for size in (8, 5, 3, 8, 2):
        x = torch.randn(size, 8, 4)
        torch.testing.assert_close(tower(x), plain(x))
    assert len(graphs) == 1
    x = torch.randn(1, 8, 4)
    torch.testing.assert_close(tower(x), plain(x))
    assert len(graphs) == 2


def test_gradients_pass_through_compiled_blocks_that_are_computed_again(monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    tower, plain = Tower(), Tower()
    compile_blocks(tower, "default")
    assert recompute_blocks(tower) == 3
    gradients = []
    for network in (tower, plain):
        x = torch.linspace(-1, 1, 96).view(3, 8, 4).requires_grad_()
        network(x).square().sum().backward()
        gradients.append((x.grad, network.blocks[0].first.weight.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_a_lora_and_populations_compile_once_for_all_blocks(graphs):
    """A population for its own sizes, whatever its noise is; and what follows it finds the layers as they were."""
    tower = Tower()
    config = LoraConfig(rank=2)
    adapter = Adapter(tower, config, ["first", "second"], 0)
    for name, parameter in adapter.parameters().items():
        if name.endswith("lora_B.weight"):
            parameter.normal_()
    compile_blocks(tower, "default")
    counts, x = [], torch.randn(6, 8, 4)
    for members in (3, 3, 2, 3):
        own = {
            name: LowRank(torch.randn(members, len(p), 1), torch.randn(members, p.shape[1], 1), p.shape)
            for name, p in adapter.parameters().items()
        }
        with lora_population(adapter.layers, own, Chunk(members, 2), compiled=True):
            found = tower(x[: 2 * members])
        with lora_population(adapter.layers, own, Chunk(members, 2)):
            for block in tower.blocks:
                block.register_forward_hook(lambda *a: None)  # runs without compiling
            expected = tower(x[: 2 * members])
            for block in tower.blocks:
                block._forward_hooks.clear()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        counts.append(len(graphs))
    assert counts == [1, 1, 2, 2]
    centre = tower(x)
    assert (centre - found).abs().max() > 1e-3
    assert len(graphs) == 3
    assert all(type(layer).__dict__.get("fixed_batch") is None for layer in adapter.layers.values())


def test_a_whole_run_compiles_the_block_and_the_decoder_once(graphs, tmp_path):
    """For its steps: nothing for grids, the checks before the first step, the export's or an evaluation."""
    options = ["backend.compile='default'", "optimizer.population=10", "run.micro_batch=8", "run.steps=2"]
    run = runner.start(world(tmp_path, *options, "evaluation.limit=2", "evaluation.images_per_prompt=3"))
    assert (run.path / "export" / "README.md").is_file()
    assert len(graphs) == 2


def test_a_missing_compiler_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"backend\.compile = 'default' needs a C\+\+ compiler"):
        compiled()


@pytest.mark.skipif(not any(map(shutil.which, compilation.COMPILERS)), reason="needs a C++ compiler")
def test_inductor_gives_the_same_numbers():
    torch.compiler.reset()
    module, x = compiled(), torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], Stack()(x)[0])


def test_half_a_file_in_the_cache_is_said_and_compiled_anew(monkeypatch, caplog, tmp_path):
    """A killed process leaves one; a compiler that fails with an empty cache too is an error."""
    monkeypatch.setenv(compilation.CACHE, str(tmp_path / "damaged"))
    torch.compiler.reset()

    def load_library(graph, inputs, **options):
        if os.environ[compilation.CACHE] == str(tmp_path / "damaged"):
            raise ImportError("x.so: file too short")
        return graph

    monkeypatch.setattr(compilation, "BACKEND", load_library)
    module, x = compiled(), torch.randn(3, 8)
    assert torch.equal(module(x)[0], Stack()(x)[0])
    assert f"in {tmp_path / 'damaged'} cannot be used" in caplog.text
    assert "file too short" in caplog.text

    def broken(graph, inputs, **options):
        raise ImportError("x.so: file too short")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    with pytest.raises(UsageError, match=r"backend\.compile: torch\.compile failed .*file too short.*set it to 'none'"):
        compiled()(x)


@torch.no_grad()
def test_a_compiled_population_has_one_size(tmp_path):
    """Ten members, four at a time: the last batch draws two again, and no score changes."""
    problem = assemble(world(tmp_path, "optimizer.population=10", "run.micro_batch=8"))
    optimizer = load_optimizer(problem)
    optimizer.prepare()
    batch, mine = problem.draw(0), slice(0, 10)
    noise, sizes, render = problem.backend.noise(batch.seeds), [], optimizer._render
    optimizer._render = lambda own, chunk, part: sizes.append(chunk.members) or render(own, chunk, part)
    plain = optimizer._score(0, batch, noise, mine, 8)
    assert sizes == [4, 4, 2]
    sizes.clear()
    with mock.patch.object(type(problem.backend), "compiled", True):
        found = optimizer._score(0, batch, noise, mine, 8)
    assert sizes == [4, 4, 4]
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], atol=1e-4, rtol=1e-4)


def world(tmp_path, *overrides):
    path = tmp_path / "spec.toml"
    path.write_text(WORLD.replace("OUT", str(tmp_path)))
    return specs.load(path, list(overrides))


def test_offloaded_weights_are_refused(tmp_path):
    with pytest.raises(SpecError, match="compiled code keeps its weights in place: set offload = 'none'"):
        world(tmp_path, "backend.compile='default'", "backend.offload='model'")
    with pytest.raises(SpecError, match="compile_fullgraph: nothing is compiled"):
        world(tmp_path, "backend.compile_fullgraph=true")


@torch.no_grad()
def test_a_backend_compiles_the_network_and_the_decoder_that_it_really_calls(tmp_path, monkeypatch):
    """The autoencoder's ``decode`` is a method: compiling the autoencoder as a module would compile nothing."""
    calls = []

    def compile_nothing(forward, **options):
        owner = type(forward.__self__).__name__
        return lambda *args, **kwargs: calls.append((owner, options["mode"])) or forward(*args, **kwargs)

    problem = assemble(world(tmp_path))
    expected = problem.generate(problem.conditioning[:2], [0, 1])
    monkeypatch.setattr(torch, "compile", compile_nothing)
    problem = assemble(world(tmp_path, "backend.compile='default'"))
    assert torch.equal(problem.generate(problem.conditioning[:2], [0, 1]), expected)
    assert calls == [("SanaTransformerBlock", "default")] * 5 + [("Decoder", "default")]
    calls.clear()
    problem = assemble(world(tmp_path, "backend.compile='decoder'"))
    assert torch.equal(problem.generate(problem.conditioning[:2], [0, 1]), expected)
    assert calls == [("Decoder", "default")]
