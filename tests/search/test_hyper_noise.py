"""``hyper-noise`` on the toy world, its file, and its loader."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import t2ialign
from t2ialign import UsageError
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.testing import installed, write_spec
from t2ialign.testing.toy import ToyStep
from t2ialign_search import plugin
from t2ialign_search.hyper_noise.loader import FILE, HyperNoise

QUIET = Display(quiet=True)


class Differentiable:
    @t2ialign.hookimpl
    def t2ialign_samplers(self, register):
        register("toy-differentiable", ToyStep, provides={"one-step", "differentiable"})


@pytest.fixture
def spec_of(tmp_path):
    def write(*overrides, **options):
        tables = {
            "run": {"steps": 12, "out": str(tmp_path / "runs"), "checkpoint_every": 4},
            "sampler": {"kind": "toy-differentiable"},
            "optimizer": {"kind": "hyper-noise", "learning_rate": 1.0, "warmup": 2, **options},
            "reward": [{"kind": "toy-redness"}, {"kind": "toy-darkness", "weight": 0.0}],
            "evaluation": {"images_per_prompt": 8},
        }
        return specs.load(write_spec(tmp_path, **tables), overrides)

    with installed(plugin, Differentiable()):
        yield write


def test_the_reward_rises_on_held_out_noise_and_the_loader_draws_the_runs_images(spec_of):
    learning = {"solver": "adamw", "learning_rate": 0.02, "regularisation": 0.01}
    run = runner.start(spec_of(**learning), QUIET)
    gain = run.summary()["paired"]["tuned"]["toy-redness"]
    assert gain["difference"] > 0.02
    metrics = run.metrics()
    assert metrics[0]["learn/mean_square"] == 0  # the start is the model itself
    assert metrics[-1]["learn/half_sum"] == pytest.approx(metrics[-1]["learn/mean_square"] * 24)
    export = run.path / "export"
    assert sorted(file.name for file in export.iterdir()) == ["README.md", FILE]
    card = (export / "README.md").read_text()
    assert "Do not load it as a LoRA" in card
    assert "and are the run's" in card

    with installed(plugin, Differentiable()):
        problem = assemble(spec_of(), report=lambda text: None)
        optimizer = load_optimizer(problem)
        optimizer.load_state(_state_of(run))
        rows, seeds = problem.conditioning[:4], [3, 4, 5, 6]
        wanted = optimizer.generate(rows, seeds)
        plain = assemble(spec_of("optimizer={kind='toy-search'}"), report=lambda text: None).backend
    noise = plain.noise(seeds)
    sampler = ToyStep(ToyStep.Config())
    before = plain.generate(rows, seeds, sampler)
    refine = HyperNoise(plain.net, export)
    torch.testing.assert_close(plain.generate(rows, seeds, sampler), before)  # the model stays as it is
    text = rows.tensors["prompt_embeds"]
    better = noise + refine.residual(torch.cat([noise.flatten(1), text], 1)).view_as(noise)
    found = plain.generate(rows, seeds, sampler, better)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-3)


def _state_of(run):
    from t2ialign import State

    _, state = run.load_checkpoint()
    return state if isinstance(state, State) else state[0]


def test_the_loader_goes_through_a_pipelines_own_call(spec_of, tmp_path):
    """A pipeline that scales its latents and calls its network by name; the network sees better latents, once more."""
    run = runner.start(spec_of(), QUIET)
    backend = assemble(spec_of(), report=lambda text: None).backend
    base = type(backend)(backend.config)
    text = base.encode(["red"]).tensors["prompt_embeds"]
    calls = []

    def pipe(prompt, latents, steps):
        calls.append(latents.clone())
        return base.net(torch.cat([latents.flatten(1), text], 1)).view_as(latents)

    refine = HyperNoise(base.net, run.path / "export")
    refine.residual, inner = (lambda *a, **k: inner(*a, **k).view(1, 3, 4, 4)), refine.residual
    noise = base.noise([1])
    found = refine(pipe, "red", latents=noise, steps=1)
    assert len(calls) == 2
    assert torch.equal(calls[0], noise)
    assert not torch.equal(calls[1], noise)
    torch.testing.assert_close(found, pipe("red", calls[1], 1))


@pytest.mark.parametrize("form", ["half_sum", "norm"])
@pytest.mark.parametrize("noise", ["shared", "one"])
def test_other_forms_learn_too(spec_of, form, noise):
    optimizer = load_optimizer(assemble(spec_of(regulariser=form, noise=noise, regularisation=1e-4)))
    first, *_, last = [optimizer.step(index).metrics for index in range(8)]
    assert last["reward/toy-redness"] > first["reward/toy-redness"]


def test_micro_batches_change_nothing(spec_of):
    found = []
    for size in (64, 7):
        optimizer = load_optimizer(assemble(spec_of(f"run.micro_batch={size}")))
        metrics = [optimizer.step(index).metrics for index in range(4)]
        found.append((metrics, optimizer.state().tensors))
    (metrics, tensors), (others, other_tensors) = found
    for a, b in zip(metrics, others, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, other_tensors[name], rtol=1e-3, atol=1e-5)


def test_the_last_layer_must_have_a_lora_and_be_the_last(spec_of):
    with pytest.raises(UsageError, match=r"the last layer '2' has no LoRA.*0"):
        load_optimizer(assemble(spec_of("backend.lora.targets=['0']")))
    with pytest.raises(UsageError, match="output does not come from it alone"):
        load_optimizer(assemble(spec_of(last_layer="0")))
    with pytest.raises(UsageError, match="is no layer of the network"):
        load_optimizer(assemble(spec_of(last_layer="proj_out")))
    with pytest.raises(t2ialign.SpecError, match="no LoRA that others load"):
        spec_of("export.formats=['peft']")


def test_a_lora_is_no_noise_network(spec_of, tmp_path):
    run = runner.start(spec_of("optimizer={kind='toy-search'}"), QUIET)
    network = assemble(spec_of(), report=lambda text: None).backend.build()
    file = next((run.path / "export").glob("*.safetensors"))
    assert load_file(file)
    with pytest.raises(UsageError, match="is no noise network"):
        HyperNoise(network, file)


def test_a_pipeline_with_another_network(spec_of):
    run = runner.start(spec_of(), QUIET)
    network = assemble(spec_of(), report=lambda text: None).backend.build()
    refine = HyperNoise(network, run.path / "export")
    with pytest.raises(ValueError, match="does not call the network"):
        refine(lambda latents: SimpleNamespace(), latents=torch.zeros(1, 3, 4, 4))
