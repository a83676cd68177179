"""What keeps a repository of the hub from being fetched is told by its kind, with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

#: Name of a repository -> status and X-Error-Code of the hub's answer.
FAULTS = {"gated": (403, "GatedRepo"), "nowhere": (404, "RepoNotFound"), "old": (404, "RevisionNotFound")}
REFS = {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": "0" * 40}], "tags": [], "converts": []}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    def do_GET(self):
        if self.path.endswith("/refs"):
            return self.answer(200, json.dumps(REFS).encode())
        status, code = next(fault for name, fault in FAULTS.items() if f"/{name}" in self.path)
        return self.answer(status, b"{}", **{"X-Error-Code": code})

    do_HEAD = do_GET

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("name", "environment", "says"),
    [
        ("gated", {}, ["is gated", "https://huggingface.co/owner/gated", "hf auth login"]),
        ("nowhere", {}, ["no such repository"]),
        ("old", {}, ["no revision 'v9'; it has 'main'"]),
        ("any", {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE"]),
        ("any", {"HF_ENDPOINT": "http://127.0.0.1:9"}, ["http://127.0.0.1:9", "cannot be reached"]),
    ],
)
def test_what_keeps_the_hub_away(name, environment, says, endpoint, tmp_path):
    message = fetched(name, {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), **environment})
    assert f"checkpoint 'owner/{name}'" in message
    assert all(words in message for words in says), message


def test_a_cache_that_cannot_be_written_is_named(endpoint, tmp_path):
    (tmp_path / "file").write_text("")
    message = fetched("old", {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "file" / "cache")}, made=True)
    assert str(tmp_path / "file") in message
    assert "HF_HOME names another folder" in message


def fetched(name, environment, made=False):
    """The message of a fetch in a process of its own, since the client reads its environment once."""
    error = "NotADirectoryError(20, 'Not a directory')"
    client = f"import huggingface_hub as h\ndef fail(*a, **k): raise {error}\nh.snapshot_download = fail\n"
    code = (
        f"{client if made else ''}from t2ialign.errors import UsageError\nfrom t2ialign.spec import checkpoints\n"
        f"try: checkpoints.resolve('owner/{name}', 'v9')\nexcept UsageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
