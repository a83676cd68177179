"""The remote reward against a server on this machine, well and badly behaved."""

from __future__ import annotations

import base64
import io
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from services import LONG, free_port, serving

from t2ialign import Prompt, RewardError, UsageError
from t2ialign.errors import SpecError, Unavailable
from t2ialign.spec.parse import parse_rewards
from t2ialign_rewards.config import RemoteConfig
from t2ialign_rewards.remote import Remote


def brightness(request):
    """The service: mean brightness plus the length of the prompt."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in request["images"]]
    assert all(picture.mode == "RGB" for picture in pictures)
    means = [float(np.asarray(picture).mean()) / 255 for picture in pictures]
    return {"scores": [mean + len(prompt) for mean, prompt in zip(means, request["prompts"], strict=True)]}


@pytest.fixture
def server():
    with serving(brightness) as server:
        yield server


def remote(server, **options):
    return Remote(RemoteConfig(**{"url": server.url, "backoff": 0.0, "timeout": 0.6, **options}))


WHITE = torch.ones(1, 3, 2, 2)


def test_scores_in_batches_at_the_same_time_on_few_connections(server):
    images = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 3, 4, 6)
    prompts = [Prompt("x" * length, {"number": length}) for length in range(8)]
    server.delay = 0.1
    reward = remote(server, batch=2, concurrency=4)
    for _ in range(3):
        scores = reward.score(images, prompts)
        torch.testing.assert_close(scores, torch.linspace(0, 1, 8) + torch.arange(8), atol=2e-3, rtol=0)
    assert [len(request["images"]) for request in server.requests] == [2] * 12
    assert {own["number"] for request in server.requests for own in request["metadata"]} == set(range(8))
    assert server.busiest == 4
    assert server.connections == 5  # one of them asked for /health


FAULTS = [
    *(500, 503, 429, "hang", "drop", "slow headers", "slow body", "cut", "no http", "huge"),
    *(b"not json", b"[]", b'{"scores": [NaN]}', b'{"scores": [1e999]}'),
    *({"scores": ["1"]}, {"scores": [True]}, {"scores": [[1.0]]}, {"scores": [1, 2]}, {"scores": []}, {"other": 1}),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_passing_faults_cost_another_try_and_nothing_else(server, fault):
    server.plan = [fault]
    started = time.monotonic()
    assert remote(server).score(WHITE, ["ab"]).tolist() == [3.0]
    assert len(server.requests) == 2
    assert time.monotonic() - started < LONG / 2


@pytest.mark.parametrize("missing", [b'{"scores": [NaN, 2]}', {"scores": [None, 2.0]}], ids=str)
def test_an_image_without_a_score_costs_no_try_where_such_are_left_out(server, missing):
    server.plan = [missing]
    reward = remote(server)
    reward.may_miss = True
    scores = reward.score(WHITE.expand(2, -1, -1, -1), ["", ""])
    assert scores.isnan().tolist() == [True, False]
    assert [request["missing"] for request in server.requests] == [True]


@pytest.mark.parametrize("wrong", [b'{"scores": [Infinity]}', b'{"scores": ["NaN"]}', b'{"scores": [1e999]}'], ids=str)
def test_what_is_no_number_is_no_missing_score(server, wrong):
    server.plan = [wrong]
    reward = remote(server)
    reward.may_miss = True
    assert reward.score(WHITE, ["ab"]).tolist() == [3.0]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (500, "HTTP 500: {.error.: .no.}"),
        ("hang", "no answer within 0.2 s"),
        ("slow body", "no answer within 0.2 s"),
        (b"\x1b[31mred", "the answer is not .*scores.* but:  .31mred"),
        ({"scores": ["x"]}, "has 'x' as score 0; must be a finite number"),
        ({"scores": [1.0, 2.0]}, "has 2 scores for 1 images"),
    ],
    ids=str,
)
def test_lasting_faults_name_server_and_fault(server, fault, words):
    server.plan = [fault] * 3
    with pytest.raises(RewardError, match=rf"127\.0\.0\.1.*failed 3 times, at last: .*{words}"):
        remote(server, retries=2, timeout=0.2).score(WHITE, [""])
    assert len(server.requests) == 3


def test_a_silent_server_is_given_up_before_a_working_one(server):
    server.plan = ["hang"]
    started = time.monotonic()
    assert remote(server, timeout=LONG * 2, silence=0.2).score(WHITE, [""]).tolist() == [1.0]
    assert time.monotonic() - started < LONG / 2


def test_backoff_doubles(server, monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("t2ialign_rewards.service.asyncio.sleep", sleep)
    server.plan = [500] * 3
    remote(server, backoff=0.5).score(WHITE, [""])
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_refusal_is_final(server, status):
    server.plan = [status] * 5
    with pytest.raises(RewardError, match=f"refused the request: HTTP {status}"):
        remote(server).score(WHITE, [""])
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_takes_no_token_with_it(server, status, monkeypatch):
    monkeypatch.setenv("SCORE_TOKEN", "abc")
    with serving(brightness) as other:
        server.plan = [(status, other.url)] * 9
        with pytest.raises(RewardError, match=r"redirects .* not followed"):
            remote(server, token_variable="SCORE_TOKEN").score(WHITE, [""])
        assert other.requests == []


def test_a_server_that_stays_away_is_waited_for_and_then_named():
    reward = Remote(RemoteConfig(url=f"http://127.0.0.1:{free_port()}/none?key=secret", wait=0.3, backoff=0.05))
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+/none has been away for 0 s") as raised:
        reward.score(WHITE, [""])
    assert "secret" not in str(raised.value)
    assert 0.3 <= time.monotonic() - started < LONG / 2


def test_a_server_that_comes_back_is_used():
    port = free_port()
    reward = Remote(RemoteConfig(url=f"http://127.0.0.1:{port}/score", backoff=0.05, wait=30.0))
    found = []
    asking = threading.Thread(target=lambda: found.append(reward.score(WHITE, ["ab"]).tolist()))
    asking.start()
    time.sleep(0.3)
    assert not found
    with serving(brightness, port):
        asking.join(timeout=20)
    assert found == [[3.0]]


def test_several_servers_share_the_work_and_one_may_fall_out(server):
    with serving(brightness) as other:
        images, prompts = torch.ones(8, 3, 2, 2), ["a"] * 8
        server.delay = other.delay = 0.05
        dead = f"http://127.0.0.1:{free_port()}/score"
        reward = remote(server, url=[server.url, other.url, dead], batch=1, concurrency=2, wait=5.0)
        assert reward.score(images, prompts).tolist() == [2.0] * 8
        assert min(len(server.requests), len(other.requests)) >= 2


def test_work_begins_while_others_work(server):
    server.delay = 0.3
    reward = remote(server)
    images, prompts = WHITE.clone(), ["a"]
    reward.begin(images, prompts)
    while not server.requests or server.under_way:
        time.sleep(0.01)
    time.sleep(0.2)  # the answer is on its way
    server.delay = LONG
    started = time.monotonic()
    assert reward.score(images, prompts).tolist() == [2.0]
    assert time.monotonic() - started < LONG / 2
    server.delay = 0.0
    assert len(server.requests) == 1
    reward.begin(images, prompts)
    assert reward.score(WHITE.clone(), ["bb"]).tolist() == [3.0]  # other images than were announced


def test_token(server, monkeypatch):
    reward = remote(server, token_variable="SCORE_TOKEN")
    monkeypatch.delenv("SCORE_TOKEN", raising=False)
    with pytest.raises(UsageError, match="SCORE_TOKEN"):
        reward.score(WHITE, [""])
    monkeypatch.setenv("SCORE_TOKEN", "abc")
    reward.score(WHITE, [""])
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer abc"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://user:hunter2@host/score", "must hold no name or password"),
        (["http://host/score", "https://hunter2@host"], "must hold no name or password"),
        ("ftp://host/score", "must be a web address"),
        ("http:///score", "must be a web address"),
        ("http://host:x/", "must be a web address"),
        ([], "needs at least one address"),
    ],
)
def test_addresses_are_checked_and_passwords_never_shown(url, words, tmp_path):
    with pytest.raises(SpecError, match=words) as raised:
        parse_rewards([{"kind": "remote", "url": url}], "spec.toml", tmp_path)
    assert "hunter2" not in str(raised.value)


def test_addresses_of_this_machine_never_go_through_a_proxy(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")  # where nobody listens
    assert remote(server, wait=0.0, timeout=5.0).score(WHITE, ["ab"]).tolist() == [3.0]


TENSORS = b'{"scores": [3.0]}'


def test_tensors_are_sent_to_our_own_server_and_it_is_asked_once(server):
    server.health = {"protocol": 1, "rewards": ["brightness"], "waiting": 0}
    server.plan = [TENSORS] * 3
    reward = remote(server)
    for _ in range(3):
        assert reward.score(WHITE, ["ab"]).tolist() == [3.0]
    assert server.looks == ["/health"]
    assert all(isinstance(request, bytes) and b"request" in request for request in server.requests)
    assert {headers["Content-Type"] for headers in server.headers} == {"application/x-safetensors"}


STRANGE = [
    *(404, 500, (302, "http://127.0.0.1:9/"), "hang", "drop", "cut", "no http", "huge", "slow body", b"", b"[]", b"ok"),
    *({}, {"status": "ok"}, {"protocol": 2, "rewards": []}, {"protocol": 1, "rewards": "x"}),
]


@pytest.mark.parametrize("health", STRANGE, ids=str)
def test_another_server_gets_png_and_loses_no_more_than_a_moment(server, health, monkeypatch):
    monkeypatch.setattr("t2ialign_rewards.service.INTRODUCTION", 0.3)
    server.health = health
    reward = remote(server, retries=0)
    started = time.monotonic()
    assert [reward.score(WHITE, ["ab"]).tolist() for _ in range(3)] == [[3.0]] * 3
    assert time.monotonic() - started < LONG / 2
    assert len(server.looks) == 1
    assert len(server.requests) == 3


def test_of_several_servers_one_of_another_kind_decides(server):
    with serving(brightness) as other:
        server.health = {"protocol": 1, "rewards": []}
        reward = remote(server, url=[server.url, other.url], batch=1)
        assert reward.score(WHITE.expand(4, -1, -1, -1), ["ab"] * 4).tolist() == [3.0] * 4
        assert [len(server.looks), len(other.looks)] == [1, 1]


def test_a_server_that_is_away_at_first_is_asked_when_it_is_there(caplog):
    port = free_port()
    reward = Remote(RemoteConfig(url=f"http://127.0.0.1:{port}/score", backoff=0.05, wait=30.0))
    found = []
    asking = threading.Thread(target=lambda: found.append(reward.score(WHITE, ["ab"]).tolist()))
    asking.start()
    while "is away" not in caplog.text:  # the first request is made, as PNG
        time.sleep(0.01)
    with serving(brightness, port) as server:
        server.health = {"protocol": 1, "rewards": []}
        asking.join(timeout=20)
        server.plan = [TENSORS]
        assert [*found, reward.score(WHITE, ["ab"]).tolist()] == [[3.0]] * 2
        assert [isinstance(request, bytes) for request in server.requests] == [False, True]


def test_what_the_spec_says_is_sent_without_a_look(server):
    server.plan = [200, TENSORS]
    for send in ("png", "float32"):
        assert remote(server, send=send).score(WHITE, ["ab"]).tolist() == [3.0]
    assert server.looks == []
    assert [isinstance(request, bytes) for request in server.requests] == [False, True]
