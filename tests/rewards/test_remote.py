"""The remote reward against a server on this machine."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from t2ialign import RewardError, UsageError
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
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.requests.append(request)
            self.server.tokens.append(self.headers.get("Authorization"))
            step = self.server.plan.pop(0) if self.server.plan else 200
            if step == "hang":
                time.sleep(0.5)
                step = 200
            answer = self.server.answer(request) if step == 200 else {"error": "no"}
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(step)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # the client may have stopped waiting
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.tokens, server.plan, server.answer = [], [], [], brightness
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(server, **options):
    options = {"backoff": 0.0, **options}
    return Remote(RemoteConfig(url=f"http://127.0.0.1:{server.server_address[1]}/score", **options))


def test_scores_in_batches(server):
    images = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 4, 6)
    prompts = ["", "a", "bb", "ccc", "dddd"]
    scores = remote(server, batch=2).score(images, prompts)
    torch.testing.assert_close(scores, torch.linspace(0, 1, 5) + torch.arange(5), atol=2e-3, rtol=0)
    assert [len(request["images"]) for request in server.requests] == [2, 2, 1]


@pytest.mark.parametrize("failure", [500, 503, 429, "hang"])
def test_passing_failures_are_tried_again(server, failure):
    server.plan = [failure, failure]
    scores = remote(server, timeout=0.2).score(torch.ones(1, 3, 2, 2), ["ab"])
    assert scores.tolist() == [3.0]
    assert len(server.requests) == 3


def test_lasting_failure_names_the_service(server):
    server.plan = [500] * 10
    with pytest.raises(RewardError, match=r"127\.0\.0\.1.*failed 3 times.*HTTP 500"):
        remote(server, retries=2).score(torch.ones(1, 3, 2, 2), [""])
    assert len(server.requests) == 3


def test_backoff_doubles(server, monkeypatch):
    waits = []
    monkeypatch.setattr("t2ialign_rewards.remote.time.sleep", waits.append)
    server.plan = [500] * 3
    remote(server, backoff=0.5).score(torch.ones(1, 3, 2, 2), [""])
    assert waits == [0.5, 1.0, 2.0]


def test_refusal_is_final(server):
    server.plan = [404] * 5
    with pytest.raises(RewardError, match="refused the request: HTTP 404"):
        remote(server).score(torch.ones(1, 3, 2, 2), [""])
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [b"not json", b"[]", {"scores": ["x"]}, {"other": 1}, {"scores": [[1.0]]}])
def test_wrong_answer(server, answer):
    server.answer = lambda _: answer
    with pytest.raises(RewardError, match="did not answer"):
        remote(server).score(torch.ones(1, 3, 2, 2), [""])


def test_wrong_number_of_scores(server):
    server.answer = lambda _: {"scores": [1.0, 2.0]}
    with pytest.raises(RewardError, match="2 scores for 1 images"):
        remote(server).score(torch.ones(1, 3, 2, 2), [""])


def test_unreachable_service():
    reward = Remote(RemoteConfig(url="http://127.0.0.1:9/none", retries=1, backoff=0.0))
    with pytest.raises(RewardError, match="failed 2 times"):
        reward.score(torch.ones(1, 3, 2, 2), [""])


def test_token(server, monkeypatch):
    reward = remote(server, token_variable="SCORE_TOKEN")
    monkeypatch.delenv("SCORE_TOKEN", raising=False)
    with pytest.raises(UsageError, match="SCORE_TOKEN"):
        reward.score(torch.ones(1, 3, 2, 2), [""])
    monkeypatch.setenv("SCORE_TOKEN", "abc")
    reward.score(torch.ones(1, 3, 2, 2), [""])
    assert server.tokens == ["Bearer abc"]
