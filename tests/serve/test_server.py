"""The server of rewards on this machine: what it answers, refuses, puts together and finishes."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2 as httpx
import pytest
import torch
import uvicorn
from safetensors.torch import save
from services import free_port
from typer.testing import CliRunner

import t2ialign
from t2ialign import Prompt, RewardError, UsageError
from t2ialign.cli import app as cli
from t2ialign.serve import protocol, server
from t2ialign.serve.app import Bounds, application
from t2ialign.serve.batcher import Batcher
from t2ialign_rewards.config import RemoteConfig
from t2ialign_rewards.remote import Remote


class Brightness(t2ialign.Reward):
    """Mean of all pixels plus the prompt's "bonus"; counts its calls and refuses the word "bad"."""

    def __init__(self, config=None, device="cpu"):
        super().__init__(config or t2ialign.Config(), device)
        self.calls, self.pause, self.held = [], 0.0, threading.Event()
        self.held.set()

    def score(self, images, prompts):
        self.calls.append(len(images))
        time.sleep(self.pause)
        self.held.wait()
        if "bad" in prompts:
            raise UsageError("the prompt 'bad' is no good")
        if "broken" in prompts:
            raise ZeroDivisionError("a secret detail")
        bonus = torch.tensor([float(prompt.data.get("bonus", 0)) for prompt in prompts])
        unknown = torch.tensor([prompt == "nan" for prompt in prompts])
        return (images.mean((1, 2, 3)) + bonus).masked_fill(unknown, torch.nan)


@contextmanager
def running(rewards, bounds=None, token=None, together=64, waiting=4096):
    batcher = Batcher(rewards, together, waiting)
    port = free_port()
    config = uvicorn.Config(application(batcher, bounds or Bounds(), token), port=port, log_level="error")
    process = uvicorn.Server(config)
    thread = threading.Thread(target=process.run)
    thread.start()
    while not process.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def world():
    reward = Brightness()
    with running({"brightness": reward}, Bounds(body=2**20, images=8, pixels=64 * 64, seconds=5)) as (url, _):
        yield url, reward


def remote(url, **options):
    return Remote(RemoteConfig(**{"url": f"{url}/rewards", "backoff": 0.0, "retries": 0, "wait": 0.5, **options}))


IMAGES = torch.rand(3, 3, 8, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("send", ["auto", "png", "uint8", "float32"])
def test_the_server_gives_the_rewards_own_scores(world, send):
    url, reward = world
    prompts = [Prompt("a", {"bonus": 1}), "b", Prompt("c", {"bonus": -2})]
    seen = IMAGES if send == "float32" else (IMAGES * 255).round() / 255
    plain = [Prompt(prompt, getattr(prompt, "data", {})) for prompt in prompts]
    scores = remote(url, send=send, reward="brightness").score(IMAGES, prompts)
    assert torch.equal(scores, reward.score(seen, plain))


def test_health(world):
    assert httpx.get(f"{world[0]}/health").json() == {"protocol": 1, "rewards": ["brightness"], "waiting": 0}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("bad", "HTTP 422: .*the prompt 'bad' is no good"),
        ("broken", "HTTP 500: .*reward 'brightness' failed: ZeroDivisionError"),
        ("nan", "HTTP 422: .*reward 'brightness' is nan for an image"),
    ],
)
def test_a_failing_reward_is_told_to_the_client_and_the_server_goes_on(world, prompt, words):
    with pytest.raises(RewardError, match=words) as raised:
        remote(world[0]).score(IMAGES[:1], [prompt])
    assert "secret" not in str(raised.value)
    assert remote(world[0]).score(torch.ones(1, 3, 2, 2), ["a"]).tolist() == [1.0]


def test_an_image_without_a_score_is_null_to_who_can_do_without(world):
    reward = remote(world[0])
    reward.may_miss = True
    assert reward.score(torch.ones(2, 3, 2, 2), ["nan", "a"]).isnan().tolist() == [True, False]


def body(**changes):
    return {"images": [protocol.png_base64(IMAGES[0])], "prompts": ["a"], **changes}


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"{", protocol.JSON, 400, "no JSON"),
        (b"[]", protocol.JSON, 400, "no JSON object"),
        (b"[" * 100_000, protocol.JSON, 400, "no JSON"),
        (body(protocol=2), protocol.JSON, 400, "protocol is 2; this server speaks 1"),
        (body(prompts="a"), protocol.JSON, 400, "prompts must be a list of texts"),
        (body(prompts=["a", "b"]), protocol.JSON, 400, "1 images and 2 prompts"),
        (body(metadata=[1]), protocol.JSON, 400, "metadata must be a list of objects"),
        (body(images=["AAAA"]), protocol.JSON, 400, "no PNG in base64"),
        (body(images=["?"]), protocol.JSON, 400, "no PNG in base64"),
        (body(images=[], prompts=[]), protocol.JSON, 400, "at least one"),
        (body(reward="other"), protocol.JSON, 404, "'other' is not served; choose one of brightness"),
        (body(reward=3), protocol.JSON, 400, "reward must be a name"),
        (body(images=[protocol.png_base64(torch.zeros(3, 65, 64))]), protocol.JSON, 400, "most are 4096"),
        (body(images=body()["images"] * 9, prompts=["a"] * 9), protocol.JSON, 400, "9 images are more than 8"),
        (b"x" * 100, protocol.TENSORS, 400, "no safetensors file"),
        (save({"images": torch.zeros(1, 3, 4, 4)}), protocol.TENSORS, 400, "no safetensors file"),
        (
            save({"images": torch.zeros(1, 1, 4, 4)}, {"request": '{"prompts": ["a"]}'}),
            protocol.TENSORS,
            400,
            "must be (B, 3, H, W)",
        ),
        (b" " * (2**20 + 1), protocol.JSON, 413, "larger than 1048576 bytes"),
        (body(), "text/plain", 415, "the content type must be application/json or"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_wrong_requests_are_refused_with_a_reason(world, content, kind, status, words):
    content = json.dumps(content).encode() if isinstance(content, dict) else content
    answer = httpx.post(f"{world[0]}/rewards", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_body_without_a_length_is_bounded_too(world):
    parts = (b" " * 65536 for _ in range(100))
    answer = httpx.post(f"{world[0]}/rewards", content=parts, headers={"Content-Type": protocol.JSON})
    assert answer.status_code == 413


def test_other_paths(world):
    assert httpx.get(f"{world[0]}/docs").status_code == 404
    assert httpx.get(f"{world[0]}/rewards").status_code == 405


def test_requests_that_wait_are_scored_together():
    reward = Brightness()
    with running({"brightness": reward}, together=8) as (url, _):
        reward.held.clear()
        with ThreadPoolExecutor(8) as pool:
            tall = torch.rand(1, 3, 4, 8)
            first = pool.submit(remote(url).score, IMAGES[:1], ["a"])
            while not reward.calls:
                time.sleep(0.01)
            client = remote(url, send="float32", concurrency=9)
            waiting = [pool.submit(client.score, IMAGES[[i % 3]], ["a"]) for i in range(5)]
            other = pool.submit(client.score, tall, ["a"])
            while httpx.get(f"{url}/health").json()["waiting"] < 6:
                time.sleep(0.01)
            reward.held.set()
            first.result()
            assert torch.cat([one.result() for one in waiting]).equal(
                torch.stack([IMAGES[i % 3].mean() for i in range(5)])
            )
            assert other.result().equal(tall.mean((1, 2, 3)))
        assert sorted(reward.calls) == [1, 1, 5]


def test_a_full_server_says_come_back_and_a_late_one_too():
    reward = Brightness()
    with running({"brightness": reward}, Bounds(seconds=0.3), waiting=2) as (url, _):
        reward.held.clear()
        with ThreadPoolExecutor(8) as pool:
            requests = [pool.submit(httpx.post, f"{url}/rewards", json=body()) for _ in range(6)]
            answers = [request.result() for request in requests]
        reward.held.set()
    said = {answer.json()["error"] for answer in answers}
    assert {answer.status_code for answer in answers} == {503}
    assert said == {"too many images wait; try again later", "not scored within 0.3 seconds"}


def test_a_token_is_asked_for(monkeypatch):
    with running({"brightness": Brightness()}, token="abc") as (url, _):
        assert httpx.post(f"{url}/rewards", content=b"{}").status_code == 401
        monkeypatch.setenv("TOKEN", "abd")
        with pytest.raises(RewardError, match=r"HTTP 401.*asks for a token"):
            remote(url, token_variable="TOKEN").score(IMAGES[:1], ["a"])
        monkeypatch.setenv("TOKEN", "abc")
        assert len(remote(url, token_variable="TOKEN").score(IMAGES, ["a"] * 3)) == 3


def test_what_was_accepted_is_answered_before_the_end():
    reward = Brightness()
    reward.pause = 0.5
    with running({"brightness": reward}) as (url, process), ThreadPoolExecutor(2) as pool:
        asked = pool.submit(remote(url).score, torch.ones(1, 3, 2, 2), ["a"])
        while not reward.calls:
            time.sleep(0.01)
        process.should_exit = True
        assert asked.result().tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ('[[reward]]\nkind = "nothing"', [], "reward[0].kind"),
        ('[run]\nsteps = 1\n[[reward]]\nkind = "random-control"', [], "unknown table 'run'"),
        ("", [], "reward must be [[reward]] tables"),
        ('[[reward]]\nkind = "random-control"', ["--host", "0.0.0.0"], "give them a token with --token-variable"),
        ('[[reward]]\nkind = "random-control"', ["--token-variable", "NO_SUCH"], "NO_SUCH (--token-variable)"),
        ('[[reward]]\nkind = "random-control"', ["--device", "gpu"], "--device gpu: must be"),
        ('[[reward]]\nkind = "clip-diversity"', [], "only runs report it"),
    ],
)
def test_the_command_refuses_what_it_cannot_serve(tmp_path, text, options, words):
    (tmp_path / "rewards.toml").write_text(text)
    done = CliRunner().invoke(cli, ["serve", str(tmp_path / "rewards.toml"), *options])
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


def test_rewards_of_weight_zero_are_served(tmp_path):
    (tmp_path / "rewards.toml").write_text('[[reward]]\nkind = "random-control"\nweight = 0.0')
    assert [part.name for part in server.read(tmp_path / "rewards.toml")] == ["random-control"]
