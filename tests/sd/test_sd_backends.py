"""Every backend of the package against the stock pipeline of its family."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from sd.cases import CASES, PROMPTS, SEEDS, make

from t2ialign import LoraConfig, UsageError, seeding
from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_lora
from t2ialign.testing import check_backend
from t2ialign_sd import config as configs
from t2ialign_sd.flux import Flux
from t2ialign_sd.hyper_sd import HyperSd
from t2ialign_sd.pixart import PixArt, PixArtDmd
from t2ialign_sd.qwen_image import QwenImage

every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def shared(build):
    """shared(case) -> its backend, which tests must not change."""
    return cache(lambda name: make(CASES[name], build))


def stock(case, build):
    pipe = diffusers.DiffusionPipeline.from_pretrained(build(case.family, case.scheduler))
    pipe.set_progress_bar_config(disable=True)
    case.prepare(pipe)
    return pipe


@every_case
def test_image_equals_the_stock_pipeline(name, build, shared):
    case, backend = CASES[name], shared(name)
    images = backend.generate(backend.encode(PROMPTS), SEEDS, case.sampler)
    latents = backend.noise(SEEDS)
    if case.backend in (Flux, QwenImage):
        latents = diffusers.FluxPipeline._pack_latents(latents, *latents.shape)
    height, width = backend.info.image_size
    expected = stock(case, build)(
        prompt=PROMPTS, latents=latents, height=height, width=width, output_type="pt", **copy.copy(case.call)
    ).images
    assert images.shape == expected.shape == (3, 3, height, width)
    assert (images - expected).abs().max() < 1e-4
    assert images.std() > 0.01


@every_case
def test_images_do_not_depend_on_batch_or_order(name, shared):
    case, backend = CASES[name], shared(name)
    conditioning = backend.encode(PROMPTS)
    whole = backend.generate(conditioning, SEEDS, case.sampler)
    order = [2, 0, 1]
    single = [backend.generate(conditioning[[i]], [SEEDS[i]], case.sampler) for i in order]
    assert (torch.cat(single) - whole[order]).abs().max() < 2e-5


@every_case
def test_gradients_reach_the_noise(name, shared):
    case, backend = CASES[name], shared(name)
    conditioning = backend.encode(PROMPTS[:1])
    noise = backend.noise([0]).requires_grad_(True)
    weight = seeding.normal([1], (3, *backend.info.image_size))

    def value(latents):
        images = backend.generate(conditioning, [0], case.sampler, noise=latents)
        return (images.double() * weight).sum()

    (gradient,) = torch.autograd.grad(value(noise), noise)
    assert gradient.norm() > 0.01
    direction, step = gradient / gradient.norm(), 2e-3
    with torch.no_grad():
        slope = (value(noise + step * direction) - value(noise - step * direction)) / (2 * step)
    assert math.isclose(slope, gradient.norm(), rel_tol=3e-2)


@every_case
def test_lora_file_gives_the_tuned_images(name, build, shared, tmp_path):
    case = CASES[name]
    conditioning = shared(name).encode(PROMPTS)
    base = shared(name).generate(conditioning, SEEDS, case.sampler)
    backend = make(case, build)
    adapter = Adapter(backend.trainable, LoraConfig(rank=2, alpha=6), backend.config.lora_targets())
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.3 * seeding.normal([i], parameter.shape)[0])
    tuned = backend.generate(conditioning, SEEDS, case.sampler)
    assert (tuned - base).abs().max() > 1e-3
    write_lora(adapter, backend.info.adapter_prefix, tmp_path / "pytorch_lora_weights.safetensors")
    fresh = make(case, build)
    fresh.load_lora(tmp_path)
    assert (fresh.generate(conditioning, SEEDS, case.sampler) - tuned).abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in CASES if not issubclass(CASES[name].backend, PixArt)])
def test_kohya_names_give_the_tuned_images(name, build, shared, tmp_path):
    case, backend = CASES[name], make(CASES[name], build)
    conditioning = shared(name).encode(PROMPTS)
    adapter = Adapter(backend.trainable, LoraConfig(rank=2), backend.config.lora_targets())
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.3 * seeding.normal([i], parameter.shape)[0])
    tuned = backend.generate(conditioning, SEEDS, case.sampler)
    save_file(backend.to_kohya(adapter.folded()), tmp_path / "style.safetensors")
    fresh = make(case, build)
    fresh.load_lora(tmp_path)
    assert (fresh.generate(conditioning, SEEDS, case.sampler) - tuned).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["pixart-sigma", "flux2-klein-base", "qwen-image"])
def test_it_keeps_the_contract_of_backends(name, build):
    check_backend(make(CASES[name], build), PROMPTS, differentiable=True)


@pytest.mark.parametrize("name", ["sd15-ddim", "sd-turbo", "sdxl", "pixart-dmd", "sd3", "flux-dev"])
def test_bfloat16_and_float16_rules(name, build):
    backend = make(CASES[name], build, dtype="bfloat16")
    images = backend.generate(backend.encode(PROMPTS), SEEDS, CASES[name].sampler)
    assert images.dtype is torch.float32
    assert images.isfinite().all()
    half = make(CASES[name], build, dtype="float16")
    assert half.trainable.dtype is torch.float16
    assert half.pipeline.vae.dtype is torch.float32
    assert half.encode(PROMPTS[:1]).tensors["prompt_embeds"].dtype is torch.float32


def test_the_decoder_has_a_batch_of_its_own(build, shared, monkeypatch):
    """Its activations are the larger ones; the images are those of one batch."""
    case, whole = CASES["sd-turbo"], shared("sd-turbo")
    backend, sizes = make(case, build, vae_micro_batch=2), []
    seeds = [0, 1, 2]
    latents = backend.noise(seeds)
    decode = backend.pipeline.vae.decode
    monkeypatch.setattr(backend.pipeline.vae, "decode", lambda z, **k: sizes.append(len(z)) or decode(z, **k))
    assert (backend.decode(latents) - whole.decode(latents)).abs().max() < 1e-5
    assert sizes == [2, 1]


def test_slicing_and_tiling_change_memory_not_images(build, shared):
    case, backend = CASES["sd-turbo"], shared("sd-turbo")
    latents = backend.noise(SEEDS)
    images = backend.decode(latents)
    assert (make(case, build, vae_slicing=True).decode(latents) - images).abs().max() < 1e-5
    tiled = make(case, build, vae_tiling=True)
    assert tiled.pipeline.vae.use_tiling
    tiled.pipeline.vae.tile_latent_min_size = 12
    tiled.pipeline.vae.tile_sample_min_size = 24
    difference = (tiled.decode(latents) - images).abs()
    assert 0 < difference.mean() < 0.05


def test_text_encoders_are_never_beside_the_network(build, monkeypatch):
    backend = make(CASES["sdxl"], build)
    load = type(backend)._load
    loaded = []

    def watched(self, *args, **options):
        pipe = load(self, *args, **options)
        loaded.append({name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)})
        return pipe

    monkeypatch.setattr(type(backend), "_load", watched)
    conditioning = backend.encode(["a circle that no other test has seen"])
    backend.generate(conditioning, [0], CASES["sdxl"].sampler)
    assert loaded == [{"text_encoder", "text_encoder_2"}, {"unet", "vae"}]


def test_a_backend_without_encoded_prompts_guides_too(build):
    """Conditioning from elsewhere: the negative prompt comes from the cache."""
    case = CASES["sd15-ddim"]
    first = make(case, build)
    conditioning = first.encode(PROMPTS)
    second = make(case, build)
    expected = first.generate(conditioning, SEEDS, case.sampler)
    assert torch.equal(second.generate(conditioning, SEEDS, case.sampler), expected)


def test_snippet_runs(build, tmp_path, monkeypatch):
    for name in ("sd-turbo", "sdxl-negative", "pixart-dmd", "sd3", "flux-dev"):
        case = CASES[name]
        backend = make(case, build)
        adapter = Adapter(backend.trainable, LoraConfig(rank=1), backend.config.lora_targets())
        write_lora(adapter, backend.info.adapter_prefix, tmp_path / "pytorch_lora_weights.safetensors")
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        exec(backend.snippet(), names)
        assert names["image"].size == backend.info.image_size[::-1] == (32, 24)


def test_qwen_image_s_decoder_computes_its_blocks_again(build, shared):
    """The autoencoder of video counts its convolutions on the way, which a second pass over a block would upset."""
    latents = seeding.normal([1], shared("qwen-image").info.latent_shape).requires_grad_(True)
    weight = seeding.normal([2], (3, *shared("qwen-image").info.image_size))

    def gradient(backend):
        return torch.autograd.grad((backend.decode(latents) * weight).sum(), latents)[0]

    expected = gradient(shared("qwen-image"))
    again = gradient(make(CASES["qwen-image"], build, gradient_checkpointing=["decoder"]))
    assert (again - expected).abs().max() < 1e-4 * expected.abs().max()
    two = torch.cat([latents, -latents]).detach()
    sliced = make(CASES["qwen-image"], build, vae_slicing=True).decode(two)
    assert (sliced - shared("qwen-image").decode(two)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="take vae_micro_batch = 1"):
        configs.QwenImageConfig(gradient_checkpointing=["decoder"], vae_slicing=True)


def test_flux2_klein_is_guided_where_its_index_says_so(build, shared):
    distilled, base = shared("flux2-klein"), shared("flux2-klein-base")
    assert make(CASES["flux2-klein"], build, guidance_scale=4.0).cfg_scale == 1.0
    assert "few-step" in distilled.config.provides()
    assert base.cfg_scale == 4.0
    assert "few-step" not in base.config.provides()
    assert "few-step" in configs.Flux2Config().provides()  # before it is on disk, its name tells
    with pytest.raises(ValueError, match="leave negative_prompt out"):
        configs.Flux2Config(negative_prompt="a dog")
    with pytest.raises(ValueError, match=r"FLUX.2 dev has another pipeline .* this backend draws FLUX.2 klein"):
        configs.Flux2Config(checkpoint="black-forest-labs/FLUX.2-dev")


def test_wrong_checkpoints_are_clear_errors(build, tmp_path):
    sd, xl = CASES["sd15-ddim"], CASES["sdxl"]
    with pytest.raises(UsageError, match=r"is a StableDiffusionXLPipeline; this backend loads StableDiffusionPipeline"):
        make(sd, build, checkpoint=str(build(xl.family, xl.scheduler)))
    with pytest.raises(UsageError, match=r"network_checkpoint.* is missing or truncated"):
        make(CASES["hyper-sd"], build, network_file="absent.safetensors").trainable  # noqa: B018
    unet = load_file(build("sdxl", xl.scheduler) / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({k: v for k, v in unet.items() if "conv_out" not in k}, tmp_path / "other.safetensors")
    backend = HyperSd(
        configs.HyperSdConfig(
            checkpoint=str(build("sdxl", xl.scheduler)),
            network_checkpoint=str(tmp_path),
            network_file="other.safetensors",
        )
    )
    with pytest.raises(UsageError, match="does not fit the UNet"):
        backend.trainable  # noqa: B018
    with pytest.raises(UsageError, match=r"has no transformer/config\.json"):
        PixArtDmd(
            configs.PixArtDmdConfig(
                checkpoint=str(build("pixart", CASES["pixart-dmd"].scheduler)), network_checkpoint=str(tmp_path)
            )
        )
    with pytest.raises(UsageError, match=r"image_size = 30: height and width must be multiples of 4; nearest: 32"):
        make(CASES["flux-dev"], build, image_size=30)
    with pytest.raises(
        UsageError, match=r"image_size = \[24, 48\]: .* multiples of 2, 32 at most; nearest: \[24, 32\]"
    ):
        make(CASES["sd3"], build, image_size=[24, 48])
