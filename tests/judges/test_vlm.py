"""Judges that ask a vision-language model, against a chat API on this machine that looks at the pictures."""

from __future__ import annotations

import math
import threading
import time

import pytest
import torch
from judges.chat import answer, completion, started
from services import LONG, free_port, serving

from t2ialign import RewardError, UsageError
from t2ialign.errors import SpecError, Unavailable
from t2ialign.spec.parse import parse_rewards
from t2ialign.testing import check_reward
from t2ialign_judges.config import VlmJudgeConfig
from t2ialign_judges.vlm import answers
from t2ialign_judges.vlm.answers import Unreadable
from t2ialign_judges.vlm.judge import VlmJudge
from t2ialign_judges.vlm.pairwise import VlmPairwise


@pytest.fixture
def server():
    with serving(answer) as server:
        yield server


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2IALIGN_CACHE", str(tmp_path / "cache"))


def judge(server, kind=VlmJudge, **options):
    port = server if isinstance(server, int) else server.server_address[1]
    fixed = {"url": f"http://127.0.0.1:{port}/v1", "model": "m", "backoff": 0.01, "timeout": 0.6}
    return kind(kind.Config(**fixed | options))


GREYS = torch.tensor([0.2, 0.6, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
PROMPTS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0.2, 0.6, 1.0]),
        ({"relative": False}, [0.16, 0.48, 0.8]),
        ({"form": "number"}, [0.2, 0.6, 1.0]),
        ({"form": "number", "scale": (0.0, 20.0)}, [0.1, 0.3, 0.5]),
        ({"form": "number", "pattern": r'"score": ([\d.]+)'}, [0.2, 0.6, 1.0]),
        ({"question": "One that likes dark pictures"}, [0.8, 0.4, 0.0]),
        ({"votes": 3, "temperature": 1.0}, [0.2, 0.6, 1.0]),
    ],
    ids=str,
)
def test_every_form_of_score(server, options, wanted):
    reward = judge(server, **options)
    torch.testing.assert_close(reward.score(GREYS, PROMPTS), torch.tensor(wanted), atol=1e-5, rtol=0)
    assert len(server.requests) == 3 * options.get("votes", 1)
    assert len({request["seed"] for request in server.requests}) == options.get("votes", 1)


def test_the_request_is_one_that_every_server_reads(server):
    judge(server, extra={"reasoning_effort": "none"}).score(GREYS[:1], ["a red fox"])
    judge(server, form="number").score(GREYS[:1], ["a red fox"])
    words, numbers = server.requests
    assert (words["model"], words["temperature"], words["max_tokens"], words["top_logprobs"]) == ("m", 0.0, 1, 20)
    assert words["reasoning_effort"] == "none"
    picture, text = words["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert '"a red fox"' in text["text"]
    assert "{" not in text["text"]
    schema = numbers["response_format"]["json_schema"]
    assert schema["name"]
    assert schema["schema"]["properties"]["score"] == {"type": "number", "minimum": 0.0, "maximum": 10.0}
    assert "logprobs" not in numbers


def test_the_contract_of_rewards(server):
    check_reward(judge(server, timeout=30.0))
    check_reward(judge(server, timeout=30.0, form="number", cache=False))


def test_what_was_asked_before_is_not_asked_again(server):
    first = judge(server, form="number")
    first.score(GREYS, PROMPTS)
    assert first.explain(GREYS, PROMPTS) == ["brightness 0.20", "brightness 0.60", "brightness 1.00"]
    second = judge(server, form="number")  # another process would find the same files
    assert torch.equal(second.score(GREYS, PROMPTS), first.score(GREYS, PROMPTS))
    assert len(server.requests) == 3
    second.score(GREYS[:1], ["another prompt"])
    judge(server, form="number", question="another {prompt}").score(GREYS[:1], PROMPTS[:1])
    judge(server, form="number", model="another").score(GREYS[:1], PROMPTS[:1])
    second.score(GREYS[:1] * 0.5, PROMPTS[:1])
    assert len(server.requests) == 7
    second.score_again(GREYS, PROMPTS)
    assert len(server.requests) == 10
    judge(server, cache=False).score(torch.cat([GREYS[:1]] * 4), ["a"] * 4)  # equal ones are asked once
    assert len(server.requests) == 11


def test_the_budget_ends_the_work(server):
    reward = judge(server, budget=2, cache=False)
    reward.score(GREYS[:2], PROMPTS[:2])
    with pytest.raises(Unavailable, match="the budget of 2 calls is used up"):
        reward.score(GREYS[2:], PROMPTS[2:])
    assert len(server.requests) == 2


def test_questions_are_asked_at_the_same_time(server):
    server.delay = 0.1
    images = torch.rand(12, 3, 8, 8)
    judge(server, concurrency=6).score(images, ["a"] * 12)
    assert server.busiest == 6


def test_a_rubric_file(server, tmp_path):
    (tmp_path / "rubric.txt").write_text("One that likes dark pictures: {prompt}")
    tables = [{"kind": "vlm-judge", "url": "http://127.0.0.1/v1", "model": "m", "rubric": "rubric.txt"}]
    (chosen,) = parse_rewards(tables, "spec", tmp_path)
    assert judge(server, rubric=chosen.config.rubric).score(GREYS[:1], ["x"]).item() == pytest.approx(0.8)
    with pytest.raises(UsageError, match=r"rubric 'nothing.txt' is no file"):
        judge(server, rubric="nothing.txt").score(GREYS[:1], ["x"])


FAULTS = [
    *(500, 503, 429, "hang", "drop", "slow headers", "slow body", "cut", "no http", "huge"),
    *(b"garbage", b"{}", {"choices": []}, {"choices": [1, 2]}, {"choices": [{"message": {"content": 3}}]}),
    *(completion("not json"), completion('{"score": 11}'), completion('{"score": "7"}'), completion('{"score": true}')),
    completion('{"score": NaN}'),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_passing_faults_cost_another_call_and_nothing_else(server, fault):
    server.plan = [fault]
    started = time.monotonic()
    assert judge(server, form="number").score(GREYS[:1], ["a"]).item() == pytest.approx(0.2)
    assert len(server.requests) == 2
    assert time.monotonic() - started < LONG / 2


def test_answers_that_stay_unreadable_are_never_a_number(server):
    server.plan = [completion("I would rather not say")] * 3
    reward = judge(server, form="number", retries=2)
    assert math.isnan(reward.score(GREYS[:1], PROMPTS[:1]).item())
    assert len(server.requests) == 3
    assert reward.explain(GREYS[:2], PROMPTS[:2]) == ["no answer could be read"] * 2  # asks nobody
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (401, "refused the request: HTTP 401"),
        ((302, "http://127.0.0.1:9/"), "redirects"),
        (completion("Yes"), "gives no log-probabilities, which form = 'yes' needs"),
    ],
    ids=str,
)
def test_what_no_further_call_mends_is_told_at_once(server, fault, words):
    server.plan = [fault] * 9
    with pytest.raises(RewardError, match=words):
        judge(server).score(GREYS[:1], ["a"])
    assert len(server.requests) == 1


def test_a_server_that_is_killed_and_started_again(tmp_path):
    """The process itself dies, in the middle of its answers, and comes back at the same port."""
    port = free_port()
    process = started(port, delay=0.05)
    found = []
    images = torch.linspace(0, 1, 60).view(60, 1, 1, 1).expand(60, 3, 4, 4)
    reward = judge(port, concurrency=4, wait=60.0, backoff=0.1)
    asking = threading.Thread(target=lambda: found.append(reward.score(images, ["a"] * 60)))
    asking.start()
    try:
        while len(list((tmp_path / "cache").rglob("*.json"))) == 0 and asking.is_alive() and reward.asking.calls < 60:
            time.sleep(0.01)
        time.sleep(1.0)
        process.kill()
        process.wait()
        process = started(port, delay=0.05)
        asking.join(timeout=60)
    finally:
        process.kill()
        process.wait()
    torch.testing.assert_close(found[0], (images[:, 0, 0, 0] * 255).round() / 255, atol=1e-5, rtol=0)


def test_pairs_are_asked_in_both_orders(server):
    reward = judge(server, VlmPairwise)
    references = torch.full_like(GREYS, 0.6)
    assert reward.against(GREYS, references, PROMPTS).tolist() == [0.0, 0.5, 1.0]
    assert len(server.requests) == 4  # equal images are a tie that nobody is asked about
    assert reward.explain_against(GREYS, references, PROMPTS) == ["2 is brighter", "equal images", "1 is brighter"]
    server.answer = lambda request: completion('{"explanation": "the first, always", "winner": "1"}')
    assert judge(server, VlmPairwise, cache=False).against(GREYS, references, PROMPTS).tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "http://me:hunter2@host/v1"}, "must hold no name or password"),
        ({"form": "number", "scale": [1.0, 1.0]}, "must be [least, greatest]"),
        ({"form": "number", "pattern": "[0-9]"}, "needs a group"),
        ({"form": "number", "pattern": "("}, "is no regular expression"),
    ],
)
def test_options_are_checked(options, words, tmp_path):
    with pytest.raises(SpecError) as raised:
        parse_rewards([{"kind": "vlm-judge", "model": "m", **options}], "spec", tmp_path)
    assert words in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_published_answer_lines_are_read():
    lines = "Alignment Score (1-5): 4\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 3"
    three = r"Alignment Score \(1-5\): ([\d.]+)\s+Coherence Score \(1-5\): ([\d.]+)\s+Style Score \(1-5\): ([\d.]+)"
    assert answers.matched(lines, three, 1, 5).value == pytest.approx((0.75 + 0.625 + 0.5) / 3)
    assert answers.matched("Final Score: 2\n... Final Score: 4", r"Final Score: ([\d.]+)", 1, 5).value == 0.75
    with pytest.raises(Unreadable, match=r"score is 10.0; must be a number from 1 to 5"):
        answers.matched("Final Score: 10", r"Final Score: ([\d.]+)", 1, 5)


def test_the_probability_of_yes():
    logs = {"Yes": math.log(0.5), " yes": math.log(0.1), "▁no": math.log(0.2), "The": math.log(0.1)}
    assert answers.yes(logs, relative=False) == pytest.approx(0.6)
    assert answers.yes(logs, relative=True) == pytest.approx(0.75)
    assert answers.yes({"No": -0.1}, relative=True) == 0.0
    with pytest.raises(Unreadable, match="neither yes nor no is a likely answer, but 'The'"):
        answers.yes({"The": -0.1}, relative=True)


def test_a_tiny_model_of_transformers_in_this_process(tiny_llava):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    reward = VlmJudge(VlmJudgeConfig(model=str(tiny_llava), dtype="float32", cache=False, relative=False))
    check_reward(reward, images, ["a", "b"])
    assert 0 < reward.score(images, ["a", "b"]).min() < 1
    options = {"model": str(tiny_llava), "dtype": "float32", "max_tokens": 3, "retries": 0}
    numbers = VlmJudge(VlmJudgeConfig(form="number", **options))
    assert numbers.score(images[:1], ["a"]).isnan().all()  # random words are no JSON
