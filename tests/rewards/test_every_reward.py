"""What every reward of the package must do, on tiny models with random weights in the released file layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from t2ialign import OptimizerConfig, plugins
from t2ialign.config import RewardMixConfig
from t2ialign.spec.capabilities import capability_problems
from t2ialign.spec.model import Chosen, ChosenReward
from t2ialign.testing import check_reward
from t2ialign_rewards import config
from t2ialign_rewards.hpsv3 import HpsV3
from t2ialign_rewards.imagereward import ImageReward

PROMPTS = ["t05 t06 t07", "t08", "t05 t06 t07", "t09 t10 t11 t12 t13", "t14 t15", "t08"]


class TinyImageReward(ImageReward):
    vision_heads = 4
    text_heads = 4


class TinyHpsV3(HpsV3):
    pixels = 56 * 56


@pytest.fixture(scope="module")
def options(
    tmp_path_factory,
    golden,
    clip_folder,
    pick_folder,
    hps_checkpoint,
    hps_base,
    hpsv3_files,
    write_clip_base,
    write_tokenizer,
):
    """kind -> the options that point it at tiny weights."""
    folder = tmp_path_factory.mktemp("weights")
    mps = golden("mps")
    imagereward = golden("imagereward")
    write_tokenizer(folder / "bert", 64, limit=35, begin=1, end=2)
    torch.save(imagereward.below("weights."), folder / "ImageReward.pt")
    save_file(mps.below("weights."), folder / "MPS_overall.safetensors")
    base = str(write_clip_base(folder / "mps", mps.metadata["clip"]))
    clip, hpsv3 = str(clip_folder), str(hpsv3_files)
    wide = wide_clip(folder / "wide", write_clip_base)
    return {
        "pickscore": {"model": str(pick_folder)},
        "clipscore": {"model": clip},
        "clip-text": {"model": clip},
        "clip-aesthetic": {"model": clip, "text": PROMPTS[0]},
        "no-artifacts": {"model": clip, "text": PROMPTS[3]},
        "hps": {"checkpoint": str(hps_checkpoint), "base": str(hps_base)},
        "hpsv3": {"checkpoint": hpsv3, "base": hpsv3, "rubric": f"{hpsv3}/rubric.txt", "dtype": "float32"},
        "imagereward": {"checkpoint": str(folder / "ImageReward.pt"), "tokenizer": str(folder / "bert")},
        "aesthetic": {"model": wide},
        "mps": {"checkpoint": str(folder), "base": base},
        "jpeg-incompressibility": {},
        "jpeg-compressibility": {},
    }


def wide_clip(folder, write_clip_base):
    """A CLIP with the 768 numbers per image that the aesthetic heads read."""
    layer = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {
        "projection_dim": 768,
        "text": layer | {"hidden_size": 16, "vocab_size": 64, "max_position_embeddings": 16, "eos_token_id": 2},
        "vision": layer | {"hidden_size": 16, "image_size": 32, "patch_size": 8},
    }
    write_clip_base(folder, sizes)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig.from_pretrained(folder)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def build(options):
    """(kind, further options) -> the reward, loaded once."""

    @cache
    def build(kind, **extra):
        declaration = plugins.registry().find("reward", kind)
        target = {"imagereward": TinyImageReward, "hpsv3": TinyHpsV3}.get(kind) or declaration.load()
        return target(declaration.config(**options[kind] | extra))

    return build


NETWORKS = [
    *("pickscore", "clipscore", "clip-text", "clip-aesthetic", "no-artifacts", "hps", "imagereward"),
    *("aesthetic", "mps", "hpsv3"),
]
LOCAL = [*NETWORKS, "jpeg-incompressibility", "jpeg-compressibility"]


@pytest.fixture
def images():
    return torch.rand(6, 3, 48, 40, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def disc():
    """A red disc on a grey ground, three times."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    inside = (x.square() + y.square() < 0.4).float()
    return torch.stack([0.4 + 0.4 * inside, 0.4 - 0.2 * inside, 0.4 - 0.2 * inside]).expand(3, -1, -1, -1)


@pytest.mark.parametrize("kind", LOCAL)
def test_it_keeps_the_contract_of_rewards(build, images, kind):
    check_reward(build(kind), images, PROMPTS)


@pytest.mark.parametrize("kind", LOCAL)
def test_a_score_does_not_depend_on_the_batch(build, images, kind):
    reward = build(kind)
    together = reward.score(images, PROMPTS)
    assert together.shape == (6,)
    assert together.dtype == torch.float32
    assert together.std() > 0
    alone = torch.cat([reward.score(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    order = [3, 1, 5, 0]
    shuffled = reward.score(images[order], [PROMPTS[i] for i in order])
    torch.testing.assert_close(shuffled, together[order], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_micro_batch_and_offload_change_nothing(build, images, kind):
    expected = build(kind).score(images, PROMPTS)
    for extra in ({"micro_batch": 4}, {"offload": True}):
        torch.testing.assert_close(build(kind, **extra).score(images, PROMPTS), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "extra"), [*((kind, {}) for kind in NETWORKS), ("clipscore", {"offload": True, "micro_batch": 2})]
)
def test_gradient_ascent_on_the_pixels_raises_the_score(build, disc, kind, extra):
    reward, prompts = build(kind, **extra), PROMPTS[:3]
    pixels = disc.clone()
    before = reward.score(pixels, prompts)
    for _ in range(5):
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(reward.score(pixels, prompts).sum(), pixels)
        pixels = (pixels.detach() + 0.01 * gradient.sign()).clamp(0, 1)
    assert (reward.score(pixels, prompts) > before).all()


def test_out_of_memory_halves_the_micro_batch(build, images):
    reward = build("clipscore", micro_batch=8)
    expected = reward.score(images, PROMPTS)
    sizes = []

    def crowded(network, arguments):
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > 2:
            raise torch.OutOfMemoryError

    hook = reward.network.vision_model.register_forward_pre_hook(crowded)
    scores = [reward.score(images.clone(), PROMPTS) for _ in range(2)]
    hook.remove()
    for again in scores:
        torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-5)
    assert sizes == [6, 4, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_are_frozen(build, images, kind):
    reward = build(kind)
    assert not reward.score(images, PROMPTS).requires_grad
    assert not reward.network.training
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())


@pytest.mark.parametrize("kind", NETWORKS)
def test_bfloat16_stays_close(build, images, kind):
    expected = build(kind).score(images, PROMPTS)
    scores = build(kind, dtype="bfloat16").score(images, PROMPTS)
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 0.1 * (1 + expected.abs().max())


@pytest.mark.parametrize("kind", [*LOCAL, "remote", "clip-diversity", "random-control"])
def test_declaration_tells_the_truth(kind):
    declaration = plugins.registry().find("reward", kind)
    target = declaration.load()
    assert ("differentiable" in declaration.provides) == target.differentiable == (kind in NETWORKS)
    assert issubclass(declaration.config, target.Config)
    assert declaration.summary


def test_a_spec_that_needs_a_gradient_is_refused():
    """By the declarations alone: nothing of the rewards' implementation is loaded."""
    needs = plugins.declare(
        "optimizer",
        "ascent",
        "nowhere.loaded:Ascent",
        OptimizerConfig,
        summary="gradient ascent",
        requires={"reward": {"differentiable"}},
    )
    optimizer = Chosen(needs, OptimizerConfig())
    parts = plugins.registry()
    problems = {}
    for kind, options in (("jpeg-compressibility", {}), ("pickscore", {}), ("remote", {"url": "http://localhost/"})):
        declaration = parts.find("reward", kind)
        reward = ChosenReward(declaration, declaration.config(**options), RewardMixConfig())
        problems[kind] = [str(problem) for problem in capability_problems(None, None, optimizer, [reward], parts)]
    assert problems["pickscore"] == []
    for kind in ("jpeg-compressibility", "remote"):
        assert len(problems[kind]) == 1
        assert kind in problems[kind][0]
        assert "pickscore" in problems[kind][0]


def test_listing_imports_no_torch():
    code = (
        "import json, sys; import t2ialign_rewards.plugin;"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'PIL'})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []


def test_every_option_is_described():
    for name in dir(config):
        model = getattr(config, name)
        if isinstance(model, type) and issubclass(model, config.Config):
            assert all(field.description for field in model.model_fields.values()), name
