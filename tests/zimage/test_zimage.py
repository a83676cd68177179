"""Z-Image against the stock pipeline, with tiny random weights of the real classes."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from cards import drawn, drawn_from_a_file
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from t2ialign import LoraConfig, UsageError, seeding
from t2ialign.lora.adapter import Adapter
from t2ialign.lora.file import write_lora, write_loras
from t2ialign.testing import check_backend
from t2ialign_diffusers.offload import TakingTurns
from t2ialign_eggroll.noise import Members, Noise
from t2ialign_eggroll.population import Chunk, lora_population
from t2ialign_eggroll.spaces import LoraSpace
from t2ialign_solvers.config import OdeConfig
from t2ialign_solvers.single_step import Euler
from t2ialign_zimage.backend import ZImage
from t2ialign_zimage.config import ZImageConfig

WORDS = ["<pad>", "<unk>", "user", ":", "assistant", "a", "red", "blue", "green", "circle", "square", "and"]
PROMPTS = ["a red circle", "A blue square and a green circle"]
SAMPLER = Euler(OdeConfig(steps=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )
    torch.manual_seed(0)
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():  # the real class starts some parameters uninitialised or at zero
        for i, parameter in enumerate(transformer.parameters()):
            if parameter.ndim != 1 or not torch.equal(parameter, torch.ones_like(parameter)):
                parameter.copy_(0.2 * seeding.normal([i], parameter.shape)[0])
    vae = AutoencoderKL(
        block_out_channels=[8, 8],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    target = tmp_path_factory.mktemp("checkpoints") / "tiny-zimage"
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ZImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_pretrained(target)
    return target


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make(folder):
    def build(**options):
        options = {"checkpoint": str(folder), "dtype": "float32", "image_size": 32, "max_sequence_length": 32} | options
        return ZImage(ZImageConfig(**options))

    return build


every_guidance = pytest.mark.parametrize(
    ("guidance", "negative", "size"), [(0.0, None, 32), (2.0, None, [24, 40]), (1.0, "a green square", [40, 24])]
)


@every_guidance
def test_the_card_draws_the_image_of_the_run(make, tmp_path, monkeypatch, guidance, negative, size):
    backend = make(guidance_scale=guidance, negative_prompt=negative, image_size=size)
    ours, card = drawn(backend, SAMPLER, tmp_path, monkeypatch)
    assert (ours - card).abs().max() < 1e-4
    plain = make(guidance_scale=guidance, negative_prompt=negative, image_size=size)
    ours, printed = drawn_from_a_file(plain, SAMPLER, tmp_path, monkeypatch)
    assert abs(ours - printed).max() <= 1


@every_guidance
def test_image_equals_the_stock_pipeline(make, folder, guidance, negative, size):
    backend = make(guidance_scale=guidance, negative_prompt=negative, image_size=size)
    images = backend.generate(backend.encode(PROMPTS), [5, 6], SAMPLER)
    pipe = ZImagePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        list(PROMPTS),
        negative_prompt=None if negative is None else [negative] * 2,
        latents=backend.noise([5, 6]),
        num_inference_steps=4,
        guidance_scale=guidance,
        height=backend.info.image_size[0],
        width=backend.info.image_size[1],
        max_sequence_length=32,
        output_type="pt",
    ).images
    assert (images - expected).abs().max() < 1e-4
    assert images.std() > 0.01


def test_the_native_grid_of_eight_steps(make):
    times = make().path.times(8) * 1000
    expected = torch.tensor([1000, 954.545, 900, 833.333, 750, 642.857, 500, 300, 0])
    assert torch.allclose(times, expected, atol=1e-3)


def test_prompts_are_not_overwritten_by_the_chat_template(make):
    prompts = list(PROMPTS)
    assert make().encode(prompts).prompts == tuple(PROMPTS)
    assert prompts == PROMPTS


def test_images_do_not_depend_on_batch_or_order(make):
    backend = make()
    conditioning = backend.encode(PROMPTS)
    whole = backend.generate(conditioning, [1, 2], SAMPLER)
    single = [backend.generate(conditioning[[i]], [i + 1], SAMPLER) for i in (1, 0)]
    assert (torch.cat(single) - whole.flip(0)).abs().max() < 1e-5


def test_gradients_reach_the_noise(make):
    backend = make()
    conditioning = backend.encode(PROMPTS[:1])
    noise = backend.noise([0]).requires_grad_(True)
    weight = seeding.normal([1], (3, 32, 32))

    def value(latents):
        return (backend.generate(conditioning, [0], SAMPLER, noise=latents).double() * weight).sum()

    (gradient,) = torch.autograd.grad(value(noise), noise)
    direction, step = gradient / gradient.norm(), 1e-3
    with torch.no_grad():
        slope = (value(noise + step * direction) - value(noise - step * direction)) / (2 * step)
    assert math.isclose(slope, gradient.norm(), rel_tol=2e-2)


def test_lora_file_gives_the_tuned_images(make, tmp_path):
    backend = make()
    conditioning = backend.encode(PROMPTS)
    base = backend.generate(conditioning, [1, 2], SAMPLER)
    adapter = Adapter(backend.trainable, LoraConfig(rank=2, alpha=6), backend.config.lora_targets())
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.1 * seeding.normal([i], parameter.shape)[0])
    tuned = backend.generate(conditioning, [1, 2], SAMPLER)
    assert (tuned - base).abs().max() > 1e-3
    write_lora(adapter, "transformer", tmp_path / "pytorch_lora_weights.safetensors")
    fresh = make()
    fresh.load_lora(tmp_path)
    assert (fresh.generate(conditioning, [1, 2], SAMPLER) - tuned).abs().max() < 1e-4


def test_bfloat16_and_snippet(make, tmp_path, monkeypatch):
    backend = make(dtype="bfloat16")
    assert backend.generate(backend.encode(PROMPTS), [1, 2], SAMPLER).isfinite().all()
    backend = make()
    write_lora(
        Adapter(backend.trainable, LoraConfig(rank=1), ["to_q"]),
        "transformer",
        tmp_path / "pytorch_lora_weights.safetensors",
    )
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(backend.snippet(), names)
    assert names["image"].size == (32, 32)


def test_odd_latents_are_refused(make):
    with pytest.raises(UsageError, match=r"image_size = \[32, 30\]: .* multiples of 4; nearest: 32"):
        make(image_size=[32, 30])


@pytest.mark.parametrize("offload", ["model", "blocks"])
def test_offloaded_weights_give_the_same_images(make, shelved, offload):
    expected = make()
    images = expected.generate(expected.encode(PROMPTS), [1, 2], SAMPLER)
    backend = make(offload=offload)
    assert torch.equal(backend.generate(backend.encode(PROMPTS), [1, 2], SAMPLER), images)
    assert shelved


def test_gradients_through_offloaded_blocks(make, shelved):
    found = []
    for options in ({}, {"offload": "blocks", "gradient_checkpointing": ["network"]}):
        backend = make(**options)
        noise = backend.noise([0]).requires_grad_(True)
        images = backend.generate(backend.encode(PROMPTS[:1]), [0], SAMPLER, noise=noise)
        found.append(torch.autograd.grad((images * seeding.normal([1], (3, 32, 32))).sum(), noise)[0])
    assert len(shelved) > 4 * 3 + 1  # more than the forward pass: four steps of three blocks, and the decoder
    # Blocks are computed again with sums in another order; a wrong weight would change everything or give NaN.
    assert (found[1] - found[0]).abs().max() < 1e-3 * found[0].abs().max()


def published_names(state):
    """The keys of the published single files: fused attention, other names of the ends."""
    state = dict(state)
    for name in [name for name in state if name.endswith("attention.to_q.weight")]:
        parts = [state.pop(name.replace("to_q", part)) for part in ("to_q", "to_k", "to_v")]
        state[name.replace("to_q", "qkv")] = torch.cat(parts)
    renames = {
        "all_final_layer.2-1.": "final_layer.",
        "all_x_embedder.2-1.": "x_embedder.",
        "attention.to_out.0.": "attention.out.",
        "attention.norm_q.": "attention.q_norm.",
        "attention.norm_k.": "attention.k_norm.",
    }
    for old, new in renames.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}


def test_it_keeps_the_contract_of_backends(make):
    check_backend(make(), [*PROMPTS, "blue and green"], differentiable=True)


@pytest.fixture
def network_folder(make, tmp_path):
    """The tiny transformer as single files: network.gguf in 8 bits (Q8_0) and network.safetensors."""
    import gguf

    state = published_names(make().trainable.state_dict())
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "network.safetensors")
    writer = gguf.GGUFWriter(tmp_path / "network.gguf", "lumina2")
    for name, tensor in state.items():
        fits = tensor.ndim == 2 and tensor.shape[1] % 32 == 0 and "pad_token" not in name
        kind = gguf.GGMLQuantizationType.Q8_0 if fits else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path


def tune(backend):
    adapter = Adapter(backend.trainable, LoraConfig(rank=2, alpha=6), backend.config.lora_targets())
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.1 * seeding.normal([i], parameter.shape)[0])
    return adapter


def test_a_network_from_a_gguf_file_is_near_and_takes_a_lora(make, folder, network_folder, tmp_path, monkeypatch):
    plain = make()
    conditioning = plain.encode(PROMPTS)
    expected = plain.generate(conditioning, [1, 2], SAMPLER)
    own = {"network_checkpoint": str(network_folder)}
    single = make(**own, network_file="network.safetensors")
    assert torch.equal(single.generate(conditioning, [1, 2], SAMPLER), expected)

    bare = tmp_path / "bare"  # the checkpoint's own weights are not needed
    shutil.copytree(folder, bare)
    (bare / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    own |= {"network_file": "network.gguf", "checkpoint": str(bare)}
    backend = make(**own)
    weight = backend.trainable.layers[0].attention.to_q.weight
    assert weight.dtype is torch.uint8
    base = backend.generate(conditioning, [1, 2], SAMPLER)
    assert 0 < (base - expected).abs().mean() < 0.02
    noise = backend.noise([0]).requires_grad_(True)
    images = backend.generate(conditioning[[0]], [0], SAMPLER, noise=noise)
    assert torch.autograd.grad(images.square().sum(), noise)[0].norm() > 1e-3
    adapter = tune(backend)
    tuned = backend.generate(conditioning, [1, 2], SAMPLER)
    assert (tuned - base).abs().max() > 1e-3
    write_lora(adapter, "transformer", tmp_path / "pytorch_lora_weights.safetensors")
    fresh = make(**own)
    fresh.load_lora(tmp_path)
    assert (fresh.generate(conditioning, [1, 2], SAMPLER) - tuned).abs().max() < 1e-4
    monkeypatch.chdir(tmp_path)
    card: dict = {}
    exec(backend.snippet_loading(), card)
    own_noise = {"latents": backend.noise([1, 2]), "height": 32, "width": 32, "output_type": "pt"}
    images = card["pipe"](list(PROMPTS), num_inference_steps=4, guidance_scale=0.0, max_sequence_length=32, **own_noise)
    assert (images.images - tuned).abs().max() < 1e-4


@pytest.mark.parametrize("offload", ["model", "blocks"])
def test_gguf_weights_can_wait_on_the_cpu(make, network_folder, monkeypatch, offload):
    """As in the fixture ``shelved``, with bits flipped while the weights wait."""
    own = {"network_checkpoint": str(network_folder), "network_file": "network.gguf"}
    plain = make(**own)
    expected = plain.generate(plain.encode(PROMPTS), [1, 2], SAMPLER)

    def flipped(self, weight):
        return ~weight if weight.dtype is torch.uint8 else -weight

    monkeypatch.setattr(TakingTurns, "home", flipped)
    monkeypatch.setattr(TakingTurns, "fetch", flipped)
    backend = make(**own, offload=offload)
    assert torch.equal(backend.generate(backend.encode(PROMPTS), [1, 2], SAMPLER), expected)


def test_a_population_of_loras_on_a_gguf_network(make, network_folder):
    backend = make(network_checkpoint=str(network_folder), network_file="network.gguf")
    adapter = tune(backend)
    conditioning = backend.encode(PROMPTS)[[0, 1, 0, 1]]
    shapes = {name: parameter.shape for name, parameter in adapter.parameters().items() if "lora_B" in name}
    sigma = dict.fromkeys(shapes, 0.1)
    noise = Members(2, antithetic=True).draw(Noise(shapes, 1).of(0, 0, "cpu"), slice(0, 2), "cpu", sigma)
    with lora_population(adapter.layers, noise, Chunk(2, 2)):
        together = backend.generate(conditioning, [1, 2, 1, 2], SAMPLER)
    one = torch.ones(1)
    for member in range(2):
        own = {name: e.select(torch.tensor([member]), one) for name, e in noise.items()}
        with LoraSpace(adapter, ["B"]).member(own):
            alone = backend.generate(conditioning[:2], [1, 2], SAMPLER)
        assert (together[2 * member : 2 * member + 2] - alone).abs().max() < 1e-4
    assert (together[:2] - together[2:]).abs().max() > 1e-3


def test_bad_network_files_are_one_clear_error(make, network_folder, monkeypatch):
    own = {"network_checkpoint": str(network_folder)}
    with pytest.raises(ValueError, match="give both or neither"):
        make(**own)
    with pytest.raises(ValueError, match="are quantised already"):
        make(**own, network_file="network.gguf", quantization={"kind": "int8"})
    with pytest.raises(UsageError, match=r"there is no .*absent\.gguf"):
        make(**own, network_file="absent.gguf").trainable  # noqa: B018
    save_file({"cap_embedder.0.weight": torch.zeros(3)}, network_folder / "other.safetensors")
    with pytest.raises(UsageError, match=r"other\.safetensors does not fit the checkpoint"):
        make(**own, network_file="other.safetensors").trainable  # noqa: B018
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "gguf" else find(name, *more))
    with pytest.raises(UsageError, match="needs the package gguf: pip install gguf"):
        make(**own, network_file="network.gguf").trainable  # noqa: B018


def test_the_decoder_takes_a_lora_in_a_file_of_its_own(make, tmp_path, monkeypatch):
    backend = make(lora_decoder=True)
    conditioning = backend.encode(PROMPTS)
    latents = backend.noise([1, 2])
    base = backend.decode(latents)
    adapter = Adapter(backend.adapted, LoraConfig(rank=2, alpha=6), backend.config.lora_targets())
    ends = {name.removeprefix("vae.decoder.mid_block.attentions.0.") for name in adapter.layers if name[:3] == "vae"}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0"}
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.3 * seeding.normal([i], parameter.shape)[0])
    tuned = backend.generate(conditioning, [1, 2], SAMPLER)
    assert (backend.decode(latents) - base).abs().max() > 1e-3
    write_loras(adapter, "transformer", tmp_path)
    for options in ({}, {"lora_decoder": True}):
        fresh = make(**options)
        fresh.load_lora(tmp_path)
        assert (fresh.generate(conditioning, [1, 2], SAMPLER) - tuned).abs().max() < 1e-4
    monkeypatch.chdir(tmp_path)
    card: dict = {}
    exec(backend.snippet(), card)
    call = {"height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 0.0, "max_sequence_length": 32}
    images = card["pipe"](list(PROMPTS), latents=backend.noise([1, 2]), output_type="pt", **call).images
    assert (images - tuned).abs().max() < 1e-3
    page = (Path(__file__).parents[2] / "plugins" / "t2ialign-zimage" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "export").mkdir()
    write_loras(adapter, "transformer", tmp_path / "export")
    pipe = {"pipe": ZImagePipeline.from_pretrained(backend.config.checkpoint)}
    exec(textwrap.dedent(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]), pipe)
    images = pipe["pipe"](list(PROMPTS), latents=backend.noise([1, 2]), output_type="pt", **call).images
    assert (images - tuned).abs().max() < 1e-3
