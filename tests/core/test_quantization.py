"""Quantised bases, with the embedded models."""

from __future__ import annotations

import sys

import pytest
import torch
from diffusers import SanaSprintPipeline, SanaTransformer2DModel, TorchAoConfig
from worlds import WORLD

from t2ialign import LoraConfig, UsageError, checkpoints, seeding
from t2ialign.errors import SpecError
from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_lora
from t2ialign.problem.export import check_export, write_export
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.spec import parse as specs
from t2ialign_sana.config import SanaSprintConfig
from t2ialign_sana.sprint import SanaSprint
from t2ialign_sd.config import SdTurboConfig
from t2ialign_sd.unet import StableDiffusion
from t2ialign_solvers.config import OneStepConfig
from t2ialign_solvers.one_step import OneStep

FOLDER = "pkg:t2ialign_shapes/checkpoints/sprint"
PROMPTS = ["a red circle left of a blue square", "a green square"]
ONE_STEP = OneStep(OneStepConfig())
#: Mean pixel difference to the float32 network, at most.
ROUNDING = {"int8": 1e-3, "float8": 2e-3, "nf4": 0.03}
each_kind = pytest.mark.parametrize("kind", ROUNDING)


@pytest.fixture(autouse=True)
def small_layers(request, monkeypatch):
    """bitsandbytes' fastest CPU kernel takes only widths that these small models do not have."""
    if "nf4" in request.node.name:
        layer = pytest.importorskip("bitsandbytes.nn").Linear4bit
        build = layer.__init__

        def plain(self, *args, **options):
            build(self, *args, **options)
            self.support_avx512bf16_for_cpu = False

        monkeypatch.setattr(layer, "__init__", plain)


def make(kind=None, **options):
    if kind:
        options["quantization"] = {"kind": kind, **options.pop("how", {})}
    common = {"checkpoint": FOLDER, "dtype": "float32", "complex_human_instruction": False}
    return SanaSprint(SanaSprintConfig(**common | options))


def tune(module, targets):
    adapter = Adapter(module, LoraConfig(rank=2), targets)
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.1 * seeding.normal([i], parameter.shape)[0])
    return adapter


@each_kind
def test_images_are_near_and_gradients_and_lora_work(kind, tmp_path):
    plain, backend = make(), make(kind)
    conditioning = plain.encode(PROMPTS)
    expected = plain.generate(conditioning, [0, 1], ONE_STEP)
    base = backend.generate(conditioning, [0, 1], ONE_STEP)
    assert 0 < (base - expected).abs().mean() < ROUNDING[kind]
    noise = backend.noise([0, 1]).requires_grad_(True)
    gradients = [
        torch.autograd.grad(b.generate(conditioning, [0, 1], ONE_STEP, noise=noise).square().sum(), noise)[0]
        for b in (plain, backend)
    ]
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.8
    adapter = tune(backend.trainable, backend.config.lora_targets())
    tuned = backend.generate(conditioning, [0, 1], ONE_STEP)
    assert (tuned - base).abs().mean() > 1e-3
    write_lora(adapter, "transformer", tmp_path / "pytorch_lora_weights.safetensors")
    fresh = make(kind)
    fresh.load_lora(tmp_path)
    assert (fresh.generate(conditioning, [0, 1], ONE_STEP) - tuned).abs().max() < 1e-5


def test_the_network_and_its_lora_equal_those_of_a_pipeline_quantised_by_diffusers(tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig

    backend = make("int8")
    write_lora(
        tune(backend.trainable, backend.config.lora_targets()),
        "transformer",
        tmp_path / "pytorch_lora_weights.safetensors",
    )
    folder = checkpoints.resolve(FOLDER)
    how = TorchAoConfig(Int8WeightOnlyConfig())
    transformer = SanaTransformer2DModel.from_pretrained(
        folder / "transformer", quantization_config=how, dtype=torch.float32
    )
    pipe = SanaSprintPipeline.from_pretrained(folder, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path)
    side = backend.info.image_size[0]
    expected = pipe(
        PROMPTS,
        latents=backend.noise([0, 1]),
        num_inference_steps=1,
        intermediate_timesteps=None,
        height=side,
        width=side,
        use_resolution_binning=False,
        complex_human_instruction=None,
        max_sequence_length=16,
        output_type="pt",
    ).images
    assert (backend.generate(backend.encode(PROMPTS), [0, 1], ONE_STEP) - expected).abs().max() < 1e-4


@each_kind
def test_a_population_runs_and_exports(kind, tmp_path):
    """EGGROLL compares members evaluated in one batch with the same members one by one before it starts."""
    (tmp_path / "spec.toml").write_text(WORLD.replace("shapes-graded", "jpeg-compressibility"))
    targets = "backend.lora.targets=['to_q', 'to_out.0', 'linear_1']"
    overrides = [f"backend.quantization.kind={kind}", targets, "optimizer.form=merged"]  # which no such layer can be
    problem = assemble(specs.load(tmp_path / "spec.toml", overrides), report=lambda text: None)
    load_optimizer(problem).step(0)
    write_export(problem, tmp_path / "export")
    check_export(problem, tmp_path / "export")
    assert f"base in {kind}" in (tmp_path / "export" / "README.md").read_text()


@each_kind
def test_linear_layers_shrink_but_for_those_that_are_skipped(kind):
    plain = make().trainable
    bits = {"int8": 8, "float8": 8, "nf4": 4}[kind]
    quantised = make(kind, how={"skip": ["proj_out", "attn1.to_q"]}).trainable
    for name, layer in plain.named_modules():
        if isinstance(layer, torch.nn.Linear):
            other = quantised.get_submodule(name).weight
            if name.endswith(("proj_out", "attn1.to_q")):
                assert torch.equal(other, layer.weight)
            else:
                assert stored(other) <= layer.weight.numel() * (bits / 8 + 0.2)


def stored(weight):
    """Bytes of a quantised weight's numbers."""
    return weight.qdata.nbytes if hasattr(weight, "qdata") else weight.data.nbytes


def test_every_network_is_quantised_by_the_same_lines():
    options = {"checkpoint": "pkg:t2ialign_shapes/checkpoints/sd-turbo", "dtype": "float32"}
    plain = StableDiffusion(SdTurboConfig(**options))
    backend = StableDiffusion(SdTurboConfig(**options, quantization={"kind": "int8"}))
    conditioning = plain.encode(PROMPTS)
    difference = plain.generate(conditioning, [0, 1], ONE_STEP) - backend.generate(conditioning, [0, 1], ONE_STEP)
    assert 0 < difference.abs().mean() < 0.01


def test_bad_options_are_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "spec.toml").write_text(WORLD)

    def load(*overrides):
        return specs.load(tmp_path / "spec.toml", ["backend.quantization.kind=int8", *overrides])

    with pytest.raises(SpecError, match="quantised weights cannot wait on the CPU"):
        load("backend.offload=model")
    with pytest.raises(SpecError, match="'weights' is lost by the backend's options: leave quantization out"):
        load("optimizer.parameters=weights")
    with pytest.raises(SpecError, match=r"backend\.quantization\.kind"):
        load("backend.quantization.kind=int9")
    with pytest.raises(UsageError, match=r"quantization\.skip: 'no_such' matches no linear layer"):
        make("int8", how={"skip": ["no_such"]}).trainable  # noqa: B018
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UsageError, match="needs the package torchao: pip install torchao"):
        make("int8").trainable  # noqa: B018
