"""PickScore and CLIPScore against the golden vectors of their authors' code."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from t2ialign import UsageError
from t2ialign.config import RewardMixConfig
from t2ialign.problem.mix import MixedReward, RewardMix
from t2ialign_rewards.clip import LastResult
from t2ialign_rewards.clip_scores import ClipScore, PickScore
from t2ialign_rewards.config import (
    ClipAestheticConfig,
    ClipScoreConfig,
    ClipTextConfig,
    NoArtifactsConfig,
    PickScoreConfig,
)

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def data(golden):
    return golden("clip")


@pytest.fixture(scope="module")
def prompts(data, words):
    return [words(ids) for ids in data["input_ids"]]


def clipscore(folder, **options):
    return ClipScore(ClipScoreConfig(model=str(folder), **options))


def pickscore(folder, **options):
    return PickScore(PickScoreConfig(model=str(folder), **options))


def test_embeddings(data, clip_folder, prompts):
    tower = clipscore(clip_folder).network
    features = torch.nn.functional.normalize(data["image_features"], dim=-1)
    torch.testing.assert_close(tower.image_embeds(data.images()), features, atol=1e-5, rtol=0)
    features = torch.nn.functional.normalize(data["text_features"], dim=-1)
    torch.testing.assert_close(tower.text_embeds(prompts), features, atol=1e-5, rtol=0)


def test_pickscore(data, clip_folder, prompts):
    reward = pickscore(clip_folder)
    torch.testing.assert_close(reward.score(data.images(), prompts), data["pickscore.paired"], atol=1e-4, rtol=0)
    for row, prompt in enumerate(prompts):
        scores = reward.score(data.images(), [prompt] * 3)
        torch.testing.assert_close(scores, data["pickscore.matrix_text_by_image"][row], atol=1e-4, rtol=0)
        torch.testing.assert_close(scores.softmax(0), data["pickscore.softmax_over_images"][row], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "kind", "constant"), [("clip", clipscore, 100), ("pickscore", pickscore, 30)])
def test_gradient_reaches_the_pixels(data, clip_folder, prompts, std, name, kind, constant):
    images = data.images().requires_grad_()
    loss = constant - kind(clip_folder).score(images, prompts)
    torch.testing.assert_close(loss.detach(), data[f"reno.{name}_loss"], atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), images)
    torch.testing.assert_close(gradient * std, data[f"reno.{name}_loss_grad"], atol=1e-5, rtol=1e-4)


def test_hyperscale_rewards(data, clip_folder, pick_folder, prompts):
    """The three texts are given as prompts here, since the tiny vocabulary has no English."""
    images, model = data.images(), {"model": str(clip_folder)}
    rewards = {
        "clip_aesthetic": ClipScore(ClipAestheticConfig(**model, text=prompts[0])),
        "clip_text": ClipScore(ClipTextConfig(**model)),
        "no_artifacts": ClipScore(NoArtifactsConfig(**model, text=prompts[2])),
        "pickscore": pickscore(pick_folder),
    }
    scores = {name: reward.score(images, [prompts[1]] * 3) for name, reward in rewards.items()}
    for name, values in scores.items():
        tolerance = 1e-4 if name == "pickscore" else 1e-5
        torch.testing.assert_close(values, data[f"hyperscale.per_image.{name}"], atol=tolerance, rtol=0)
        for mix in ("w4", "w3"):
            torch.testing.assert_close(values.mean(), data[f"hyperscale.{mix}.{name}"], atol=tolerance, rtol=0)
    weights = {"clip_aesthetic": 0.3, "clip_text": 0.3, "no_artifacts": 0.2, "pickscore": 0.2}
    combined = sum(weight * scores[name] for name, weight in weights.items())
    torch.testing.assert_close(combined, data["hyperscale.per_image.combined"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["pick_only", "mixed"])
def test_hyperscale_scores_of_given_embeddings(case):
    """One prompt's images: the four terms, their means, and the weighted mix."""
    tensors = load_file(GOLDEN / "eggroll.safetensors")
    block = {key.removeprefix(f"rewards/{case}/"): t for key, t in tensors.items() if key.startswith(f"rewards/{case}")}

    class Tower:
        last_images = LastResult()

        def __init__(self, kind, texts):
            self.kind, self.texts = kind, texts
            self.logit_scale = block["pick_logit_scale_log"].exp().item()

        def image_embeds(self, images):
            return normalize(block[f"{self.kind}_image_embeds"], dim=-1)

        def text_embeds(self, prompts):
            return normalize(block[f"{self.kind}_text_embeds"], dim=-1)[[self.texts.index(p) for p in prompts]]

    texts = [ClipAestheticConfig().text, "a prompt", NoArtifactsConfig().text]
    kinds = {
        "clip_aesthetic": (ClipScore, ClipAestheticConfig, "clip", texts),
        "clip_text": (ClipScore, ClipTextConfig, "clip", texts),
        "no_artifacts": (ClipScore, NoArtifactsConfig, "clip", texts),
        "pickscore": (PickScore, PickScoreConfig, "pick", ["a prompt"]),
    }
    count = len(block["clip_image_embeds"])
    parts, raw = [], {}
    for (name, (kind, config, tower, known)), weight in zip(kinds.items(), block["mix_weights"].tolist(), strict=True):
        reward = kind(config())
        reward.network = Tower(tower, known)
        raw[name] = reward.score(torch.zeros(count, 3, 8, 8), ["a prompt"] * count)
        torch.testing.assert_close(raw[name].mean(), block[name][0], atol=1e-4, rtol=1e-5)
        parts.append(MixedReward(name, reward, RewardMixConfig(weight=weight)))
    torch.testing.assert_close(RewardMix(parts).combine(raw).mean(), block["combined"][0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scale": 1.0}, lambda cos: cos),
        ({"scale": 0.5, "offset": 0.5}, lambda cos: (cos + 1) / 2),
        ({"scale": 100.0, "minimum": 0.0}, lambda cos: (100 * cos).clamp(min=0)),
        ({"scale": 2.5, "minimum": 0.0}, lambda cos: 2.5 * cos.clamp(min=0)),
    ],
)
def test_definitions_of_clipscore(data, clip_folder, prompts, options, expected):
    images = data.images()
    mixed = [prompts[0], prompts[0], prompts[2]]
    features = [torch.nn.functional.normalize(data[f"{side}_features"], dim=-1) for side in ("image", "text")]
    cosine = (features[0] * features[1][[0, 0, 2]]).sum(-1)
    scores = clipscore(clip_folder, **options).score(images, mixed)
    torch.testing.assert_close(scores, expected(cosine), atol=1e-4, rtol=0)


def test_long_prompt_is_cut_with_one_warning(data, clip_folder, caplog):
    reward = clipscore(clip_folder, revision="long")  # a tower of its own, so that no other test took the warning
    long = " ".join(f"t{3 + i:02d}" for i in range(40))
    cut = " ".join(f"t{3 + i:02d}" for i in range(14))
    image = data.images()[:1]
    with caplog.at_level(logging.WARNING, "t2ialign_rewards.text"):
        scores = [reward.score(image, [text]) for text in (long, f"{long} t09", cut)]
    torch.testing.assert_close(scores[0], scores[2], atol=0, rtol=0)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "a prompt of 42 tokens is cut to the model's 16, here and in future"
    ]


def test_prompts_are_encoded_once(data, clip_folder, prompts):
    tower = clipscore(clip_folder, revision="count").network
    calls = []
    tower.text_model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        tower.text_embeds([prompts[0], prompts[1], prompts[0]])
    assert len(calls) == 2


def test_rewards_of_one_model_share_its_weights(clip_folder):
    first = clipscore(clip_folder)
    second = ClipScore(NoArtifactsConfig(model=str(clip_folder), micro_batch=3))
    assert first.network is second.network
    assert clipscore(clip_folder, dtype="bfloat16").network is not first.network


def test_scores_after_inference_mode_have_gradients(data, clip_folder, prompts):
    reward = clipscore(clip_folder, revision="inference")
    with torch.inference_mode():
        reward.score(data.images(), prompts)
    images = data.images().requires_grad_()
    reward.score(images, prompts).sum().backward()
    assert images.grad.abs().sum() > 0


def test_missing_and_left_over_weights_are_reported(data, tmp_path, write_clip):
    weights = data.below("weights.")
    weights["text_model.extra"] = weights.pop("text_projection.weight")
    folder = write_clip(tmp_path, weights, data.metadata["config_clip"])
    with pytest.raises(UsageError, match=r"1 missing \(text_projection.weight\); 1 unexpected \(text_model.extra\)"):
        clipscore(folder).score(torch.rand(1, 3, 32, 32), ["t05"])


def test_weights_in_a_pickle_are_read_as_plain_tensors_or_refused(data, tmp_path, write_clip, prompts):
    (tmp_path / "plain").mkdir()
    plain = write_clip(tmp_path / "plain", data.below("weights."), data.metadata["config_clip"])
    images = data.images()
    wanted = clipscore(plain).score(images, prompts)
    folder = plain.rename(tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.allclose(clipscore(folder).score(images, prompts), wanted, atol=1e-4)

    class Call:
        def __reduce__(self):
            return (open, (str(tmp_path / "made by a pickle"), "w"))

    again = folder.rename(folder.with_name("calling"))
    (again / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Call()}, protocol=2))
    with pytest.raises(UsageError, match=r"the \.bin weights of .*calling are no file of plain tensors"):
        clipscore(again).score(images, prompts)
    assert not (tmp_path / "made by a pickle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling_mine.Mine"}}, "wants code of its own.*auto_map names modeling_mine.Mine"),
        (
            {"text_config": {"num_hidden_layers": 10**10}},
            "more than 10,000 layers: text_config.num_hidden_layers = 1000",
        ),
        (None, "config.json is no JSON object"),
    ],
)
def test_a_config_that_wants_code_or_endless_layers_is_refused(tmp_path, data, write_clip, change, message):
    folder = write_clip(tmp_path, data.below("weights."), data.metadata["config_clip"])
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps([] if change is None else settings | change))
    with pytest.raises(UsageError, match=message):
        clipscore(folder).score(torch.rand(1, 3, 32, 32), ["t05"])


def test_folder_without_a_model(tmp_path):
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        clipscore(tmp_path).score(torch.rand(1, 3, 32, 32), ["t05"])


@pytest.fixture
def pair(clip_folder):
    """Two rewards on one tower, and how often its image side ran."""
    first = clipscore(clip_folder, revision="shared")
    second = ClipScore(ClipAestheticConfig(model=str(clip_folder), revision="shared"))
    calls: list[int] = []
    handle = first.network.vision_model.register_forward_hook(lambda *_: calls.append(1))
    yield first, second, calls
    handle.remove()


def test_rewards_of_one_model_embed_a_batch_once(data, prompts, pair):
    first, second, calls = pair
    images = data.images()
    alone = second.score(images.clone(), prompts)
    calls.clear()
    first.score(images, prompts)
    torch.testing.assert_close(second.score(images, prompts), alone, atol=0, rtol=0)
    assert len(calls) == 1


def test_a_changed_or_new_batch_is_embedded_again(data, prompts, pair):
    first, _, calls = pair
    images = data.images()
    before = first.score(images, prompts)
    images.mul_(0.5)
    assert not torch.equal(first.score(images, prompts), before)
    first.score(images.clone(), prompts)
    assert len(calls) == 3


def test_rewards_of_one_model_have_gradients_of_their_own(data, prompts, pair):
    first, second, _ = pair
    images = data.images().requires_grad_()
    for reward in (first, second):
        reward.score(images, prompts).sum().backward()  # would fail if the two shared a graph
    assert images.grad.abs().sum() > 0
