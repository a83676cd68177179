"""Published judges as presets: what is asked, how it is read, and that the spec's own words win."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from judges.chat import completion
from services import serving

from t2ialign import Prompt, UsageError
from t2ialign.errors import SpecError
from t2ialign.remarks.collect import of_part
from t2ialign.spec.parse import parse_rewards
from t2ialign.testing import check_reward
from t2ialign_judges import presets, vqa
from t2ialign_judges.config import VlmJudgeConfig
from t2ialign_judges.vlm import answers
from t2ialign_judges.vlm.answers import Unreadable
from t2ialign_judges.vlm.judge import VlmJudge

IMAGE = torch.full((1, 3, 8, 8), 0.4)
THREE = "**Alignment Score (1-5):** 4\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 3"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def says():
    """A server that gives one answer to everything, set by ``.text`` or, as probabilities, by ``.words``."""

    def answer(request):
        if request.get("logprobs"):
            asked = request["messages"][0]["content"][-1]["text"]
            shares = next(own for part, own in server.words.items() if part in asked)
            top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
            return completion("x", {"content": [{"token": "x", "logprob": -1, "top_logprobs": top}]})
        return completion(server.text)

    with serving(answer) as server:
        yield server


def judge(server, **options):
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return VlmJudge(VlmJudgeConfig(url=url, model="m", backoff=0.01, retries=0, **options))


def asked(server):
    return server.requests[-1]["messages"][0]["content"][-1]["text"]


def test_vqascore_is_the_probability_of_yes_among_all_words(says):
    says.words = {"a red fox": {"Yes": 0.5, "yes": 0.1, "No": 0.2, "The": 0.2}}
    assert judge(says, preset="vqascore").score(IMAGE, ["a red fox"]).item() == pytest.approx(0.6)
    request = says.requests[-1]
    assert (request["temperature"], request["max_tokens"], request["logprobs"]) == (0.0, 1, True)
    assert '"a red fox"' in asked(says)
    assert "Yes or No" in asked(says)


@pytest.mark.parametrize(
    ("preset", "text", "wanted"),
    [
        ("unifiedreward", "a fox: 1\nred: 0\nFinal Score: 4", 0.75),
        ("unifiedreward", "**Final Score:** 3.5.", 0.625),
        ("unifiedreward", "Final Score: 2\nI correct myself.\nFinal Score: 5", 1.0),
        ("unifiedreward", "Final Score: 10", None),
        ("unifiedreward", "Final Score: 4.5.6", None),
        ("unifiedreward", "Final Score: -3", None),
        ("unifiedreward", "Final Score: good", None),
        ("unifiedreward", "4", None),
        ("unifiedreward-2", THREE, (0.75 + 0.625 + 0.5) / 3),
        ("unifiedreward-2", THREE.replace("Coherence Score (1-5): 3.5\n", ""), None),
        ("unifiedreward-2", THREE.replace(": 3.5", ":"), None),
        ("unifiedreward-2", THREE.replace(": 3.5", ": 0.5"), None),
        ("unifiedreward-2", THREE.replace("Style Score (1-5): 3", "Style Score (1-5): 10"), None),
    ],
)
def test_point_scores_are_read_strictly(says, preset, text, wanted):
    says.text = text
    score = judge(says, preset=preset).score(IMAGE, ["a red fox"]).item()
    assert math.isnan(score) if wanted is None else score == pytest.approx(wanted)
    request = says.requests[-1]
    assert (request["temperature"], request["max_tokens"]) == (0.0, 512)
    assert "response_format" not in request
    assert "Caption: a red fox" in asked(says)
    lines = ["Final Score:"] if preset == "unifiedreward" else [f"{axis} Score (1-5):" for axis in presets.AXES]
    assert all(line in asked(says) for line in lines)


def test_what_the_spec_says_wins_over_a_preset(says, tmp_path):
    says.text = "Final Score: 8"
    (tmp_path / "rubric.txt").write_text("The authors' words on {prompt}")
    options = {"preset": "unifiedreward", "scale": (0.0, 10.0), "max_tokens": 9}
    assert judge(says, rubric=str(tmp_path / "rubric.txt"), **options).score(IMAGE, ["x"]).item() == pytest.approx(0.8)
    assert asked(says) == "The authors' words on x"
    assert says.requests[-1]["max_tokens"] == 9
    judge(says, question="Mine: {prompt}", **options).score(IMAGE, ["x"])
    assert asked(says) == "Mine: x"
    says.words = {"x": {"yes": 0.3, "no": 0.3}}
    assert judge(says, preset="vqascore", relative=True).score(IMAGE, ["x"]).item() == pytest.approx(0.5)
    says.text = '{"score": 3, "explanation": ""}'
    assert judge(says, preset="vqascore", form="number").score(IMAGE, ["x"]).item() == pytest.approx(0.3)
    assert "give a score from 0" in asked(says)  # the preset's question asks for another form


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(SpecError, match=r"reward\[0\].preset.*vqascor.*vqascore"):
        parse_rewards([{"kind": "vlm-judge", "model": "m", "preset": "vqascor"}], "spec", tmp_path)


def test_options_that_the_form_does_not_use_are_named():
    def told(**options):
        (reward,) = parse_rewards([{"kind": "vlm-judge", "model": "m", **options}], "spec", Path())
        return of_part("reward", reward, [])

    lines = told(preset="unifiedreward", form="yes")
    assert [line.split(" = ")[0] for line in lines] == ["reward 'vlm-judge': scale", "reward 'vlm-judge': pattern"]
    assert all(told(preset=name) == [] for name in presets.PRESETS)


FOX = Prompt("two red foxes", {"vqa_list": [["How many foxes are there?", "two"], ["Are they red?", "Yes"]]})
WORDS = {"How many": {"Two": 0.4, "2": 0.2, " three": 0.3, "The": 0.1}, "red?": {"Yes": 0.2, "yes": 0.05, "No": 0.75}}


def test_soft_tifa_averages_the_probabilities_of_the_right_answers(says):
    says.words = WORDS
    reward = judge(says, preset="soft-tifa")
    assert reward.score(IMAGE, [FOX]).item() == pytest.approx((0.6 + 0.25) / 2)
    assert len(says.requests) == 2
    assert {request["max_tokens"] for request in says.requests} == {1}
    assert asked(says) in {f"{question} Answer with one word." for question, _ in FOX.data["vqa_list"]}
    assert reward.explain(IMAGE, [FOX]) == ["Are they red? yes with a probability of 0.250"]
    geometric = judge(says, preset="soft-tifa", mean="geometric").score(IMAGE, [FOX]).item()
    assert geometric == pytest.approx(math.sqrt(0.6 * 0.25))
    other = Prompt(str(FOX), {"vqa_list": FOX.data["vqa_list"][:1]})  # the same words with other questions
    assert reward.score(IMAGE, [other]).item() == pytest.approx(0.6)
    assert len(says.requests) == 5


def test_an_answer_of_another_kind_leaves_the_image_without_a_score(says):
    says.words = WORDS | {"red?": {"Red": 0.9, "The": 0.1}}
    assert judge(says, preset="soft-tifa").score(IMAGE, [FOX]).isnan().all()
    top = {"three": math.log(0.9), "The": math.log(0.1)}
    assert answers.probability(top, vqa.spellings("two"), vqa.kin("two"))[0] == 0.0  # a wrong answer is an answer
    with pytest.raises(Unreadable, match="no number is a likely answer, but 'The'"):
        answers.probability({"The": -0.1}, vqa.spellings("two"), vqa.kin("two"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "'vqa_list' of its data is None; must be a list of"),
        ({"vqa_list": []}, r"must be a list of \[question, answer\]"),
        ({"vqa_list": [["Is it red?"]]}, "'vqa_list' 0 of its data is .*; must be .question, answer."),
        ({"vqa_list": [["What is it?", "a fox"]]}, "has the answer 'a fox'; must be yes, no, or a number to 12"),
    ],
)
def test_a_prompt_without_questions_is_told_before_the_work(data, words):
    config = VlmJudgeConfig(model="m", preset="soft-tifa")
    assert config.reads() == {"vqa_list"}
    with pytest.raises(ValueError, match=words):
        vqa.questions(Prompt("x", data))
    assert config.problem_with(Prompt("x", data))
    assert config.problem_with(FOX) == ""


def test_a_prompt_without_questions_is_refused_before_anything_is_asked(says):
    says.words = WORDS
    with pytest.raises(UsageError, match=r"the prompt 'plain' 'vqa_list' of its data is None"):
        judge(says, preset="soft-tifa").score(IMAGE.expand(2, -1, -1, -1), [FOX, "plain"])
    assert says.requests == []


@pytest.mark.parametrize("preset", ["vqascore", "soft-tifa"])
def test_presets_with_a_tiny_model_in_this_process(tiny_llava, preset):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(text, {"vqa_list": [["a", "yes"], ["b", "no"]]}) for text in ("a", "b")]
    reward = VlmJudge(VlmJudgeConfig(model=str(tiny_llava), dtype="float32", cache=False, preset=preset))
    check_reward(reward, images, prompts)
    assert 0 < reward.score(images, prompts).min() < 1
