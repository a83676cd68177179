"""Exported files by the recorded key maps of their clients: every tensor is taken, and changes what it should."""

from __future__ import annotations

import json
from functools import cache

import diffusers
import pytest
import torch
from lora import client_maps
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from t2ialign.lora.adapter import matching
from t2ialign.lora.reading import read
from t2ialign_diffusers.lora_names import to_kohya, to_modules
from t2ialign_diffusers.originals import originals
from t2ialign_sd import config as sd
from t2ialign_zimage.config import ZImageConfig

UNET_XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SD3 = {"num_layers": 24, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536}
#: Model of the maps -> the network at full size, and the options of its backend.
MODELS = {
    "sd15": (diffusers.UNet2DConditionModel, {"cross_attention_dim": 768, "attention_head_dim": 8}, sd.Sd15Config),
    "sd21": (
        diffusers.UNet2DConditionModel,
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        sd.SdTurboConfig,
    ),
    "sdxl": (diffusers.UNet2DConditionModel, UNET_XL, sd.SdxlConfig),
    "sd3": (diffusers.SD3Transformer2DModel, {**SD3, "pos_embed_max_size": 192}, sd.Sd3Config),
    "sd35m": (
        diffusers.SD3Transformer2DModel,
        {**SD3, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm", "pos_embed_max_size": 384},
        sd.Sd3Config,
    ),
    "sd35l": (
        diffusers.SD3Transformer2DModel,
        {**SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
        sd.Sd3Config,
    ),
    "flux": (diffusers.FluxTransformer2DModel, {"guidance_embeds": True}, sd.FluxConfig),
    "pixart_alpha": (diffusers.PixArtTransformer2DModel, {"sample_size": 64}, sd.PixArtDmdConfig),
    "flux2_klein4b": (
        diffusers.Flux2Transformer2DModel,
        {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
        | {"guidance_embeds": False},
        sd.Flux2Config,
    ),
    "qwen": (diffusers.QwenImageTransformer2DModel, {}, sd.QwenImageConfig),
    "pixart_sigma": (
        diffusers.PixArtTransformer2DModel,
        {"sample_size": 128, "interpolation_scale": 2, "use_additional_conditions": False},
        sd.PixArtSigmaConfig,
    ),
    "zimage": (diffusers.ZImageTransformer2DModel, {}, ZImageConfig),
}
#: Form of the export -> (client, model) that reads it whole.
READS = {
    "kohya": [
        *((client, "sd15") for client in ("comfyui", "forge", "a1111", "kohya", "diffusers")),
        *((client, "sd21") for client in ("comfyui", "forge", "kohya", "diffusers")),
        *((client, "sdxl") for client in ("comfyui", "forge", "a1111", "kohya", "diffusers")),
        *((client, "flux") for client in ("comfyui", "forge", "kohya", "diffusers")),
        *((client, model) for client in ("comfyui", "diffusers") for model in ("flux2_klein4b", "qwen")),
        ("comfyui", "sd3"),
        ("kohya", "sd3"),
        *((client, "sd35m") for client in ("comfyui", "forge", "kohya")),
        *((client, "sd35l") for client in ("comfyui", "kohya")),
    ],
    "diffusers": [
        *(("diffusers", model) for model in MODELS if not model.startswith("pixart")),
        *(("comfyui", model) for model in ("sd3", "sd35m", "sd35l", "flux", "flux2_klein4b", "qwen")),
        *(("comfyui", model) for model in ("pixart_alpha", "pixart_sigma", "zimage")),
        ("forge", "flux"),
    ],
}
CASES = [(form, client, model) for form, pairs in READS.items() for client, model in pairs]


@cache
def network(model):
    kind, options, _ = MODELS[model]
    with torch.device("meta"):
        return kind(**options)


@cache
def exported(model):
    """The tensors of a LoRA on the default targets, rank 2: by diffusers module."""
    net, config = network(model), MODELS[model][2]()
    layers = dict(net.named_modules())
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for path in matching(list(layers), config.lora_targets()):
        rows, columns, *kernel = layers[path].weight.shape
        tensors[f"{path}.lora_A.weight"] = torch.randn(2, columns, *kernel, generator=generator)
        tensors[f"{path}.lora_B.weight"] = torch.randn(rows, 2, *[1] * len(kernel), generator=generator)
    return tensors


@cache
def written(form, model):
    if form == "kohya":
        return to_kohya(exported(model), network(model), originals(network(model)))
    prefix = "unet" if model in ("sd15", "sd21", "sdxl") else "transformer"
    return {f"{prefix}.{name}": tensor for name, tensor in exported(model).items()}


@cache
def truth(model):
    """Weight (by its plain name in ComfyUI) -> its change, from ComfyUI's map of diffusers' names."""
    client = client_maps.load("comfyui", model)
    keys = client["layouts"][0]["keys"]
    result = {}
    for path in {name.rpartition(".lora_")[0] for name in exported(model)}:
        a, b = (exported(model)[f"{path}.lora_{side}.weight"].flatten(1) for side in "AB")
        rule = keys.get(
            f"lora_unet_{path.replace('.', '_')}" if model in ("sd15", "sd21", "sdxl") else f"transformer.{path}"
        )
        for weight, first, _, count in client_maps.parts(client, rule, len(b)):
            whole = result.setdefault(client_maps.plain(weight), torch.zeros(dict(client["weights"])[weight][0]))
            whole[first : first + count] += b @ (a @ client_maps.probe(a.shape[1]))
    return result


@pytest.mark.parametrize(("form", "client", "model"), CASES, ids=["-".join(case) for case in CASES])
def test_every_tensor_is_taken_and_changes_its_weight_by_b_a(form, client, model):
    tensors = written(form, model)
    taken, changes = client_maps.change(client_maps.load(client, model), tensors)
    assert taken == set(tensors)
    if client == "diffusers" or (
        client == "kohya" and model in ("sd15", "sd21")
    ):  # these call weights as diffusers does
        wanted = {}
        for path in {name.rpartition(".lora_")[0] for name in exported(model)}:
            a, b = (exported(model)[f"{path}.lora_{side}.weight"].flatten(1) for side in "AB")
            wanted[path] = b @ (a @ client_maps.probe(a.shape[1]))
    else:
        wanted = truth(model)
    found = {client_maps.plain(weight): tensor for weight, tensor in changes.items() if tensor.any()}
    assert found.keys() == wanted.keys()
    for weight, tensor in found.items():
        torch.testing.assert_close(
            tensor, wanted[weight], rtol=1e-4, atol=1e-3
        )  # sums of thousands of products of unit size


@pytest.mark.parametrize(
    "model", [model for model in MODELS if model not in ("pixart_alpha", "pixart_sigma", "zimage")]
)
def test_the_kohya_form_reads_back_as_it_was(model):
    found = to_modules(written("kohya", model), network(model), originals(network(model)))
    assert found.keys() == exported(model).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in exported(model).items())


@pytest.mark.parametrize("model", MODELS)
def test_the_model_card_names_the_clients_that_read_a_form(model):
    words = {"comfyui": "ComfyUI", "forge": "Forge", "a1111": "AUTOMATIC1111", "kohya": "kohya's scripts"}
    words["diffusers"] = "diffusers"
    said = MODELS[model][2]().lora_formats()
    for form, pairs in READS.items():
        for client, word in words.items():
            recorded = (client_maps.MAPS / f"{client}_{model}.json").exists()
            if recorded and (client, model) in pairs:
                assert word in said[form]
            elif recorded and form in said and word != "Forge":  # the two smaller models of Stable Diffusion 3
                assert word not in said[form]


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_strengths_of_recorded_files_are_those_of_comfyui(form, tmp_path):
    """Ranks and alphas differ between layers; the change of every weight was recorded in ComfyUI itself."""
    golden = client_maps.MAPS.parent / "clients_sd15_delta.safetensors"
    with safe_open(golden, "pt") as stream:
        header = stream.metadata()
    tensors = load_file(golden)
    own = {name.removeprefix(f"{form}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{form}/")}
    metadata = {"lora_adapter_metadata": header["lora_adapter_metadata"]} if form == "diffusers" else {}
    file = tmp_path / ("adapter_model.safetensors" if form == "peft" else "lora.safetensors")

    save_file(own, file, metadata)
    if form == "peft":
        settings = {key.partition(".")[2]: value for key, value in json.loads(header["lora_adapter_metadata"]).items()}
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    net = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64, 128, 128), cross_attention_dim=16, attention_head_dim=4
    )
    found = to_modules(read(file), net, originals(net))
    weights = json.loads(header["comfyui_weight"])
    assert {name.rpartition(".lora_")[0] for name in found} == set(weights)
    for path, target in weights.items():
        weight, part, swapped = (target, None, None) if isinstance(target, str) else target
        assert part is None
        assert swapped is None
        b, a = (found[f"{path}.lora_{side}.weight"].flatten(1) for side in "BA")
        delta = tensors[f"delta/{weight}"].flatten(1)
        torch.testing.assert_close(b @ a, delta, rtol=1e-5, atol=1e-5)
