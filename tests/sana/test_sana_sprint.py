"""The Sana Sprint backend against the stock pipeline."""

from __future__ import annotations

import gc
import inspect
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from cards import drawn
from diffusers import SanaSprintPipeline
from safetensors.torch import load_file, save_file
from transformers import Gemma2Model

from t2ialign import LoraConfig, UsageError, seeding
from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_lora
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_sana.denoiser import SprintDenoiser, SprintPath
from t2ialign_sana.upstream import UpstreamOneStep
from t2ialign_solvers.config import ConsistencyConfig, OneStepConfig
from t2ialign_solvers.consistency import Consistency
from t2ialign_solvers.one_step import OneStep

PROMPTS = ["a red circle", "A blue square and a green circle", "a red square above a blue circle"]
ONE_STEP = OneStep(OneStepConfig())


@pytest.fixture(scope="module")
def stock(sprint_folder):
    pipe = SanaSprintPipeline.from_pretrained(sprint_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_images(pipe, prompts, latents, steps=1, **options):
    settings = {"intermediate_timesteps": 1.3 if steps == 2 else None, "height": 32, "width": 32}
    settings |= {"use_resolution_binning": False, "max_sequence_length": 16, "output_type": "pt"}
    return pipe(list(prompts), latents=latents, num_inference_steps=steps, **(settings | options)).images


@pytest.mark.parametrize("instruction", [True, False])
def test_one_step_equals_the_stock_pipeline(make_backend, stock, instruction):
    height, width = (32, 64) if instruction else (32, 32)
    options = {"guidance_scale": 3.0, "image_size": [height, width]}
    backend = make_backend(complex_human_instruction=instruction, **options)
    images = backend.generate(backend.encode(PROMPTS), [5, 6, 7], ONE_STEP)
    chosen = {"width": width} | ({} if instruction else {"complex_human_instruction": None})
    expected = stock_images(stock, PROMPTS, backend.noise([5, 6, 7]), guidance_scale=3.0, **chosen)
    assert images.shape == (3, 3, height, width)
    assert (images - expected).abs().max() < 1e-5
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    assert torch.equal(stock_images(stock, PROMPTS, None, generator=generators, guidance_scale=3.0, **chosen), expected)


def test_two_steps_equal_the_stock_pipeline_with_one_generator_per_image(make_backend, stock):
    backend = make_backend()
    seeds = [1, 2, 3]
    images = backend.generate(backend.encode(PROMPTS), seeds, Consistency(ConsistencyConfig(steps=2)))
    step_noise = [seeding.generator(seeding.derive(seed, "sampler", 0)) for seed in seeds]
    expected = stock_images(stock, PROMPTS, backend.noise(seeds), steps=2, generator=step_noise)
    assert (images - expected).abs().max() < 1e-5


@pytest.mark.parametrize("steps", [3, 4])
def test_more_steps_equal_the_stock_pipeline_given_the_same_draws(make_backend, stock, steps, monkeypatch):
    backend = make_backend()
    seeds = [1, 2, 3]
    images = backend.generate(backend.encode(PROMPTS), seeds, Consistency(ConsistencyConfig(steps=steps)))
    count = iter(range(steps))

    def draw(shape, **_):
        step = next(count)
        return seeding.normal([seeding.derive(seed, "sampler", step) for seed in seeds], shape[1:])

    monkeypatch.setattr("diffusers.schedulers.scheduling_scm.randn_tensor", draw)
    expected = stock_images(stock, PROMPTS, backend.noise(seeds), steps=steps)
    assert (images - expected).abs().max() < 1e-5


def test_images_do_not_depend_on_batch_or_order(make_backend):
    backend = make_backend()
    conditioning = backend.encode(PROMPTS)[[0, 1, 2, 0, 1, 2, 0, 1]]
    seeds = list(range(8))
    for sampler in (ONE_STEP, Consistency(ConsistencyConfig(steps=2))):
        whole = backend.generate(conditioning, seeds, sampler)
        single = torch.cat([backend.generate(conditioning[[i]], [i], sampler) for i in seeds])
        order = [3, 7, 0, 2, 6, 1, 5, 4]
        shuffled = backend.generate(conditioning[order], [seeds[i] for i in order], sampler)
        assert (single - whole).abs().max() < 1e-5
        assert (shuffled - whole[order]).abs().max() < 1e-5
        assert (whole[0] - whole[3]).abs().max() > 1e-2  # the same prompt, another seed


def test_images_do_not_depend_on_the_prompts_encoded_beside(make_backend):
    backend = make_backend()
    alone = backend.generate(backend.encode(PROMPTS[:1]), [4], ONE_STEP)
    beside = backend.generate(backend.encode(PROMPTS)[[0]], [4], ONE_STEP)
    assert (alone - beside).abs().max() < 1e-5


@pytest.mark.parametrize("instruction", [True, False])
def test_embeddings_equal_the_pipelines(make_backend, stock, instruction):
    text = inspect.signature(SanaSprintPipeline.__call__).parameters["complex_human_instruction"].default
    options = {"complex_human_instruction": text if instruction else None, "max_sequence_length": 16}
    embeds, mask = stock.encode_prompt(PROMPTS, **options)
    tensors = make_backend(complex_human_instruction=instruction).encode(PROMPTS).tensors
    length = int(mask.sum(1).max())
    assert torch.equal(tensors["prompt_attention_mask"], mask[:, :length])
    assert tensors["prompt_embeds"].shape[1] == length
    expected = (embeds * mask[..., None])[:, :length]
    assert (tensors["prompt_embeds"] - expected).abs().max() < 1e-6


def test_text_encoder_is_alone_in_memory_and_leaves_it(make_backend, monkeypatch):
    backend = make_backend()
    encode_batch = type(backend).encode_batch
    seen = []

    def watched(self, pipeline, prompts):
        seen.append((pipeline.transformer, pipeline.vae, "pipeline" in self.__dict__))
        return encode_batch(self, pipeline, prompts)

    monkeypatch.setattr(type(backend), "encode_batch", watched)

    def encoders():
        return sum(type(thing) is Gemma2Model for thing in gc.get_objects())

    gc.collect()
    before = encoders()
    conditioning = backend.encode(PROMPTS)
    assert seen == [(None, None, False)]
    assert encoders() == before
    backend.generate(conditioning, [0, 1, 2], ONE_STEP)
    assert backend.pipeline.text_encoder is None


def test_known_prompts_need_no_encoder(make_backend, monkeypatch):
    first = make_backend().encode(PROMPTS)

    def fail(*_):
        raise AssertionError("the encoder ran")

    again = make_backend()
    monkeypatch.setattr(type(again), "encode_batch", fail)
    second = again.encode(PROMPTS[::-1])
    assert second.prompts == tuple(PROMPTS[::-1])
    assert torch.equal(second.tensors["prompt_embeds"].flip(0), first.tensors["prompt_embeds"])
    with pytest.raises(AssertionError, match="the encoder ran"):
        make_backend(complex_human_instruction=False).encode(PROMPTS)


def test_gradients_reach_the_noise(make_backend):
    backend = make_backend()
    conditioning = backend.encode(PROMPTS[:1])
    noise = backend.noise([0]).requires_grad_(True)
    weight = seeding.normal([1], (3, 32, 32))

    def value(latents):
        images = backend.generate(conditioning, [0], ONE_STEP, noise=latents)
        return (images.double() * weight).sum()

    (gradient,) = torch.autograd.grad(value(noise), noise)
    direction = gradient / gradient.norm()  # along it the slope is the gradient's norm
    step = 1e-3
    with torch.no_grad():
        slope = (value(noise + step * direction) - value(noise - step * direction)) / (2 * step)
    assert gradient.norm() > 1
    assert math.isclose(slope, gradient.norm(), rel_tol=1e-2)
    assert all(p.grad is None for p in backend.trainable.parameters())


def test_lora_file_gives_the_tuned_images_in_a_fresh_backend(make_backend, tmp_path):
    backend = make_backend()
    conditioning = backend.encode(PROMPTS)
    base = backend.generate(conditioning, [0, 1, 2], ONE_STEP)
    targets = backend.config.lora_targets()
    adapter = Adapter(backend.trainable, LoraConfig(rank=2, alpha=8), targets)
    assert torch.equal(backend.generate(conditioning, [0, 1, 2], ONE_STEP), base)
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.1 * seeding.normal([i], parameter.shape)[0])
    tuned = backend.generate(conditioning, [0, 1, 2], ONE_STEP)
    assert (tuned - base).abs().max() > 1e-2
    write_lora(adapter, backend.info.adapter_prefix, tmp_path / "pytorch_lora_weights.safetensors")

    fresh = make_backend()
    fresh.load_lora(tmp_path)
    assert (fresh.generate(conditioning, [0, 1, 2], ONE_STEP) - tuned).abs().max() < 1e-4


def test_a_lora_that_fits_nothing_is_an_error(make_backend, tmp_path):
    backend = make_backend()
    with pytest.raises(UsageError, match=r"has no pytorch_lora_weights\.safetensors"):
        backend.load_lora(tmp_path)
    factors = {"lora_A.weight": torch.zeros(2, 8), "lora_B.weight": torch.zeros(8, 2)}
    module = "transformer_blocks.0.attn1.to_q"
    for prefix in ("text_model.", "transformer.no_such_"):
        save_file(
            {f"{prefix}{module}.{k}": v for k, v in factors.items()}, tmp_path / "pytorch_lora_weights.safetensors"
        )
        with pytest.raises(UsageError, match="pytorch_lora_weights"):
            make_backend().load_lora(tmp_path)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("plain", [True, False])
def test_the_card_draws_the_image_of_the_run(make_backend, tmp_path, monkeypatch, plain, guidance):
    size = 32 if plain else [32, 64]
    backend = make_backend(complex_human_instruction=not plain, guidance_scale=guidance, image_size=size)
    ours, card = drawn(backend, ONE_STEP, tmp_path, monkeypatch)
    assert (ours - card).abs().max() < 1e-4
    assert "t2ialign" not in backend.snippet()


def test_bfloat16(make_backend):
    half, full = make_backend(dtype="bfloat16"), make_backend()
    assert half.trainable.dtype is torch.bfloat16
    conditioning = half.encode(PROMPTS)
    assert conditioning.tensors["prompt_embeds"].dtype is torch.bfloat16
    images = half.generate(conditioning, [0, 1, 2], ONE_STEP)
    assert images.dtype is torch.float32
    assert (images - full.generate(full.encode(PROMPTS), [0, 1, 2], ONE_STEP)).abs().mean() < 0.02


def test_autoencoder_and_text_encoder_are_never_float16(make_backend):
    backend = make_backend(dtype="float16")
    assert backend.trainable.dtype is torch.float16
    assert backend.pipeline.vae.dtype is torch.float32
    assert backend.encode(PROMPTS).tensors["prompt_embeds"].dtype is torch.float32
    assert make_backend(dtype="float16", vae_dtype="bfloat16").pipeline.vae.dtype is torch.bfloat16


def test_divergence_is_not_hidden(make_backend):
    backend = make_backend()
    with torch.no_grad():
        backend.trainable.proj_out.weight[0, 0] = float("nan")
    assert not backend.generate(backend.encode(PROMPTS[:1]), [0], ONE_STEP).isfinite().all()


def test_facts(make_backend, sprint_folder):
    info = make_backend(image_size=None).info
    assert (info.latent_shape, info.image_size) == ((4, 8, 8), (16, 16))
    assert make_backend().info.latent_shape == (4, 16, 16)
    assert (info.base_model, info.pipeline) == (str(sprint_folder), "SanaSprintPipeline")


def break_nothing_but(folder: Path, target: Path, change) -> Path:
    shutil.copytree(folder, target)
    change(target)
    return target


def edit_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
        (lambda f: edit_json(f / "model_index.json", _class_name="FluxPipeline"), "is a FluxPipeline; .* SanaSprint"),
        (lambda f: shutil.rmtree(f / "vae"), "no component 'vae'"),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(), "'vae' has no .safetensors"),
        (lambda f: truncate(f / "transformer/diffusion_pytorch_model.safetensors"), "truncated"),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"short"), "truncated"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is no JSON"),
        (
            lambda f: (f / "vae/x.safetensors.index.json").write_text('{"weight_map": {"w": "missing.safetensors"}}'),
            "lacks the shard missing",
        ),
        (
            lambda f: edit_json(f / "vae/config.json", layers_per_block=9_999_999_999),
            "vae/config.json tells of more than 10,000",
        ),
        (
            lambda f: edit_json(f / "text_encoder/config.json", auto_map={"AutoModel": "own.MyModel"}),
            "text_encoder/config.json wants code of its own, which is never run: auto_map names own.MyModel",
        ),
        (
            lambda f: edit_json(f / "model_index.json", vae=["mine", "MyCoder"]),
            "'vae' is a MyCoder of 'mine'; code that",
        ),
    ],
)
def test_a_bad_checkpoint_is_one_clear_error(make_backend, sprint_folder, tmp_path, change, message):
    folder = break_nothing_but(sprint_folder, tmp_path / "broken", change)
    with pytest.raises(UsageError, match=message):
        make_backend(checkpoint=str(folder))


def test_image_size_must_fit_the_autoencoder(make_backend):
    with pytest.raises(UsageError, match=r"image_size = \[32, 33\]: .* multiples of 2; nearest: 32"):
        make_backend(image_size=[32, 33])


def test_golden_one_step():
    golden = load_file(Path(__file__).parents[1] / "golden/sana_one_step.safetensors")

    class Recorder(torch.nn.Module):
        dtype = torch.float32
        config = type("Config", (), {"guidance_embeds_scale": 0.1})

        def forward(self, latents, **inputs):
            self.inputs = inputs | {"latents": latents}
            return (golden["model_output"],)

    network = Recorder()
    text = Conditioning(
        ("", ""), {"prompt_embeds": torch.zeros(2, 1, 8), "prompt_attention_mask": torch.ones(2, 1, dtype=torch.int64)}
    )
    denoiser = SprintDenoiser(network, text, golden["guidance_scale"].item(), SprintPath())
    noise = golden["noise_unit"]
    assert (ONE_STEP.sample(denoiser, noise) - golden["scm_pred_latent"]).abs().max() < 2e-6
    assert (network.inputs["guidance"] - golden["transformer_guidance"]).abs().max() < 1e-6
    assert (network.inputs["latents"] - golden["transformer_latent_in"]).abs().max() < 1e-4
    assert (network.inputs["timestep"] - golden["transformer_timestep"]).abs().max() < 3e-4  # 1.571 for 1.5708
    upstream = UpstreamOneStep(UpstreamOneStep.Config()).sample(denoiser, noise)
    assert (upstream - golden["upstream_pred_latent"]).abs().max() < 1e-3
