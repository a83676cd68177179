"""A server on this machine that speaks the calls of a push, and keeps what it was sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Hub:
    """Repositories by name, and what clients asked.

    Attributes:
        private: repository -> whether it is.
        files: of every commit, path -> content.
        cards: repository -> data of its card.
        refuses: status of every answer to "create", to play a bad token.
        wrong_card: what the check of cards finds wrong.
    """

    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    commits: int = 0
    refuses: int = 0
    wrong_card: str = ""
    url: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.calls.append(f"{method} {path}")
        if path == "/api/repos/create":
            if self.refuses:
                return self.refuses, {"error": "Invalid username or password."}
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            exists = name in self.private
            self.private.setdefault(name, asked.get("visibility") == "private")
            return 409 if exists else 200, {"url": f"{self.url}/{name}", "id": name}
        if path == "/api/validate-yaml":
            errors = [{"message": self.wrong_card}] if self.wrong_card else []
            return 400 if errors else 200, {"errors": errors, "warnings": []}
        if path.startswith("/api/models/"):
            name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            rest = path.removeprefix(f"/api/models/{name}")
            if rest.startswith("/preupload/"):
                asked = json.loads(body)["files"]
                files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
                return 200, {"files": files}
            if rest.startswith("/commit/"):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.commits += 1
                return 200, {"commitOid": "0" * 40, "commitUrl": f"{self.url}/{name}/commit/{'0' * 40}"}
            if name in self.private or name in self.cards:
                known = {
                    "id": name,
                    "sha": "0" * 40,
                    "private": self.private.get(name, False),
                    "siblings": [],
                    "tags": [],
                }
                return 200, known | ({"cardData": self.cards[name]} if name in self.cards else {})
        return 404, {"error": "Repository not found"}


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, value = hub.answer(self.command, self.path.partition("?")[0], body)
            data = json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _do

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
