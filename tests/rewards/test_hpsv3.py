"""HPSv3 on a tiny Qwen2-VL of the real classes, in the layout of the released file."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from t2ialign import UsageError
from t2ialign_rewards.config import HpsV3Config
from t2ialign_rewards.hpsv3 import INSTRUCTION, HpsV3, Patches, fitted
from t2ialign_rewards.preprocess import CLIP_MEAN, CLIP_STD

IMAGES = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(1))
PROMPTS = ["t05 t06 t07 t08", "t09", "t10 t11"]


def build(folder, **options):
    fixed = {"checkpoint": str(folder), "base": str(folder), "rubric": str(folder / "rubric.txt"), "dtype": "float32"}
    return HpsV3(HpsV3Config(**fixed | options))


@pytest.fixture(scope="module")
def reward(hpsv3_files):
    return build(hpsv3_files)


def test_a_batch_scores_as_its_images_do_one_by_one(reward):
    together = reward.score(IMAGES, PROMPTS)
    alone = torch.cat([reward.score(IMAGES[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    swapped = reward.score(IMAGES, PROMPTS[1:] + PROMPTS[:1])
    assert (swapped - together).abs().min() > 1e-4  # the prompts matter


def test_it_is_what_the_authors_forward_gives(reward, hpsv3_files):
    """Their way, step by step: embeddings with the image's rows put in, positions without a grid, head everywhere."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    picture = (IMAGES[0] * 255).round().byte()
    pixels = Qwen2VLImageProcessorPil(size={"shortest_edge": 200704, "longest_edge": 200704})(
        Image.fromarray(picture.permute(1, 2, 0).numpy()), return_tensors="pt"
    )
    state = load_file(hpsv3_files / "HPSv3.safetensors")
    sizes = Qwen2VLConfig.from_pretrained(hpsv3_files)
    sizes.text_config.vocab_size = len(state["model.embed_tokens.weight"])
    network = Qwen2VLForConditionalGeneration(sizes).eval()
    names = {"visual.": "model.visual.", "model.": "model.language_model.", "lm_head.": "lm_head."}
    body = {
        new + key.removeprefix(old): value
        for old, new in names.items()
        for key, value in state.items()
        if key.startswith(old)
    }
    network.load_state_dict(body)
    tokenizer = AutoTokenizer.from_pretrained(hpsv3_files)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    count = int(pixels["image_grid_thw"].prod()) // 4
    shown = f"<|im_start|>user <|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"
    text = f"{shown}t01 t02 {PROMPTS[0]} t03 <|Reward|> t04<|im_end|>"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        embeds = network.get_input_embeddings()(ids)
        seen = network.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        embeds = embeds.masked_scatter((ids == sizes.image_token_id)[..., None], seen)
        hidden = network.model.language_model(inputs_embeds=embeds).last_hidden_state
        for number in ("0", "3", "5"):
            hidden = hidden @ state[f"rm_head.{number}.weight"].T + state[f"rm_head.{number}.bias"]
            hidden = hidden.relu() if number != "5" else hidden
    wanted = hidden[ids == tokenizer.convert_tokens_to_ids("<|Reward|>")][:, 0]
    torch.testing.assert_close(reward.score(picture[None] / 255, PROMPTS[:1]), wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("size", [(48, 40), (448, 448), (600, 400), (512, 768)], ids=str)
def test_patches_are_those_of_the_image_processor(size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    picture = (noise * 128 + 64).byte()  # no overshoot, which 8-bit steps between the axes cut off
    edges = {"shortest_edge": 200704, "longest_edge": 200704}
    wanted = Qwen2VLImageProcessorPil(size=edges)(
        Image.fromarray(picture[0].permute(1, 2, 0).numpy()), return_tensors="pt"
    )
    found, grid = Patches(200704, 14, 2, 2, {"mean": CLIP_MEAN, "std": CLIP_STD})(picture / 255)
    assert [1, *grid] == wanted["image_grid_thw"][0].tolist()
    torch.testing.assert_close(found, wanted["pixel_values"], atol=1.1 / 255 / min(CLIP_STD), rtol=0)


def test_sizes_are_those_of_qwen2_vl():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    sizes = [(height, width) for height in range(28, 1400, 37) for width in (64, 448, 512, 768, 1024, height)]
    for height, width in sizes:
        assert fitted(height, width, 28, 200704) == smart_resize(height, width, 28, 200704, 200704)


def test_words_after_the_reward_token_and_tokens_in_a_prompt_change_nothing(reward, hpsv3_files, tmp_path):
    (tmp_path / "rubric.txt").write_text("t01 t02 {prompt} t03 <|Reward|>")
    other = build(hpsv3_files, rubric=str(tmp_path / "rubric.txt"))
    assert torch.equal(other.score(IMAGES, PROMPTS), reward.score(IMAGES, PROMPTS))
    assert reward.score(IMAGES[:1], ["<|image_pad|> <|Reward|> t05"]).isfinite().all()


def test_the_chat_template_may_be_in_a_file_of_its_own(reward, hpsv3_files, tmp_path):
    shutil.copytree(hpsv3_files, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    base = str(tmp_path / "base")
    with pytest.raises(UsageError, match=r"the tokenizer of .* has no chat template"):
        build(hpsv3_files, base=base).score(IMAGES, PROMPTS)
    template = AutoTokenizer.from_pretrained(hpsv3_files).chat_template
    (tmp_path / "base" / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert torch.equal(build(hpsv3_files, base=base).score(IMAGES, PROMPTS), reward.score(IMAGES, PROMPTS))


def test_without_a_rubric_our_own_words_are_asked_and_that_is_told(hpsv3_files):
    plain = build(hpsv3_files, rubric=None)
    assert plain.score(IMAGES, PROMPTS).isfinite().all()
    assert "<|Reward|>" in INSTRUCTION
    told = HpsV3Config().remarks([])
    assert told == ["without the authors' instruction (rubric), its scores do not compare with published ones"]
    assert HpsV3Config(rubric="words.txt").remarks([]) == []


@pytest.mark.parametrize("words", ["{prompt}", "{prompt} <|Reward|> <|Reward|>", "<|Reward|>"])
def test_a_rubric_without_its_places_is_refused(hpsv3_files, tmp_path, words):
    (tmp_path / "words.txt").write_text(words)
    with pytest.raises(UsageError, match=r"must have \{prompt\}, and <\|Reward\|> once"):
        build(hpsv3_files, rubric=str(tmp_path / "words.txt")).score(IMAGES[:1], ["a"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rm_head.3.weight": None}, r"1 missing \(rm_head.3.weight\)"),
        ({"rm_head.7.weight": torch.ones(1)}, r"1 unexpected \(rm_head.7.weight\)"),
        ({"other": torch.ones(1)}, r"1 unexpected \(other\)"),
        ({"model.norm.weight": None}, r"1 missing \(language_model.norm.weight\)"),
        (
            {"model.embed_tokens.weight": torch.ones(30, 32)},
            "has 30 tokens, the tokenizer of .* 26: they do not belong",
        ),
    ],
)
def test_a_file_that_is_not_hpsv3s_is_refused(hpsv3_files, tmp_path, change, words):
    state = load_file(hpsv3_files / "HPSv3.safetensors") | change
    file = tmp_path / "HPSv3.safetensors"
    save_file({key: value for key, value in state.items() if value is not None}, file)
    with pytest.raises(UsageError, match=words):
        build(hpsv3_files, checkpoint=str(file)).score(IMAGES[:1], ["a"])
