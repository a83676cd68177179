"""Text in images: the target, the distance, and words that are drawn and read back."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from judges.lettering import noisy, written

from t2ialign import Prompt, RewardError, UsageError
from t2ialign_judges import texts
from t2ialign_judges.config import OcrConfig
from t2ialign_judges.ocr import Ocr

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "judges_ocr.json").read_text())["cases"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_the_score_of_flow_grpo(case):
    wanted = case["expected"]
    if "error" in wanted:  # where the original ends the batch, the prompt is refused before the run
        assert OcrConfig().problem_with(case["prompt"]) or "“" in case["prompt"]  # we read curly quotes, too
        return
    assert OcrConfig().problem_with(case["prompt"]) == ""
    (target,) = texts.targets(case["prompt"])
    assert target == case["target"]
    if case["lines"] == "raise":  # an engine's failure is not the image's: see below
        return
    read = texts.joined([tuple(line) for line in case["lines"]])
    assert texts.similarity(read, target) == pytest.approx(wanted["score"], abs=1e-12)
    if wanted.get("no_substring") is not None:
        assert texts.similarity(read, target, contained=False) == pytest.approx(wanted["no_substring"], abs=1e-12)


@pytest.mark.parametrize(
    ("prompt", "options", "wanted"),
    [
        ('a sign "OPEN" and a flag "SALE"', {}, ["OPEN"]),
        ('a sign "OPEN" and a flag "SALE"', {"every": True}, ["OPEN", "SALE"]),
        ("a sign that says “Fish & Chips”", {}, ["Fish & Chips"]),
        (Prompt("a shop", {"text": "OPEN"}), {"key": "text"}, ["OPEN"]),
        (Prompt("a shop", {"text": ["OPEN", "SALE"]}), {"key": "text"}, ["OPEN", "SALE"]),
    ],
)
def test_where_the_target_comes_from(prompt, options, wanted):
    assert texts.targets(prompt, **options) == wanted


@pytest.mark.parametrize(
    ("prompt", "key", "words"),
    [
        ("a shop", None, "has no text in quotation marks"),
        ('a shop " "', None, "has no letter"),
        (Prompt("a shop", {"text": 3}), "text", "must be a text or a list of texts"),
    ],
)
def test_a_prompt_without_a_target_is_refused(prompt, key, words):
    assert words in OcrConfig(key=key).problem_with(prompt)
    with pytest.raises(UsageError, match=words):
        Ocr(OcrConfig(key=key)).score(torch.ones(1, 3, 64, 64), [prompt])


@pytest.fixture(scope="module")
def reward():
    return Ocr(OcrConfig(side=320))


WORDS = ["HELLO", "Coffee", "OPEN", "Library", "Rhythm", "2024", "Quartz", "Spring", "Exit 12", "Thank you"]
FONTS = ["DejaVuSans", "DejaVuSerif"]


def test_drawn_words_are_read_back_and_others_score_less(reward):
    images = torch.stack([written(word, FONTS[row % 2]) for row, word in enumerate(WORDS)])
    prompts = [f'a card with "{word}"' for word in WORDS]
    assert reward.score(images, prompts).tolist() == [1.0] * len(images)
    wrong = [f'a card with "{word[:-2]}XY"' for word in WORDS[:3]]
    two_letters = [1 - 2 / len(word) for word in WORDS[:3]]
    torch.testing.assert_close(reward.score(images[:3], wrong), torch.tensor(two_letters))


def test_noise_and_nothing(reward):
    images = torch.stack([noisy(written("HELLO"), 0.1), torch.ones(3, 512, 512), noisy(torch.ones(3, 512, 512), 0.5)])
    assert reward.score(images, ['"HELLO"'] * 3).tolist() == [1.0, 0.0, 0.0]
    assert reward.explain(images[:2], ['"HELLO"'] * 2) == ['read "HELLO", wanted "HELLO"', 'read "", wanted "HELLO"']


def test_exact_asks_for_nothing_else():
    image = written("HELLO WORLD")[None].expand(2, -1, -1, -1)
    prompts = ['"hello world"', '"hello"']
    assert Ocr(OcrConfig(side=320, form="exact")).score(image, prompts).tolist() == [1.0, 0.0]
    assert Ocr(OcrConfig(side=320)).score(image, prompts).tolist() == [1.0, 1.0]
    assert Ocr(OcrConfig(side=320, contained=False)).score(image, prompts).tolist() == [1.0, 0.0]


def test_a_failing_engine_is_no_bad_image():
    reward = Ocr(OcrConfig())

    def engine(image):
        raise ValueError("no memory")

    reward.engine = engine
    with pytest.raises(RewardError, match="the engine failed: ValueError: no memory"):
        reward.score(torch.ones(1, 3, 64, 64), ['"HELLO"'])


def test_reading_needs_no_network_and_leaves_torch_alone(monkeypatch):
    def refuse(*_):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    threads = torch.get_num_threads()
    assert Ocr(OcrConfig(side=320)).score(written("HELLO")[None], ['"HELLO"']).tolist() == [1.0]
    assert torch.get_num_threads() == threads
