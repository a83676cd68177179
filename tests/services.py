"""A server on this machine that misbehaves as it is told: what clients of HTTP services are tested against."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], Any]
#: Seconds that "hang" and the slow faults take in all: longer than any client of the tests waits.
LONG = 6.0


class Server(ThreadingHTTPServer):
    """
    Attributes:
        plan: what the next requests meet: a status, a fault by name, bytes to answer with, or an object; then answers
            are right.
        health: what GET requests meet.
        requests: the bodies so far, as JSON where they are.
        headers: of each.
        looks: paths of GET requests so far.
        connections: accepted so far.
        busiest: most requests that were under way at once.
    """

    daemon_threads = True

    def __init__(self, answer: Answer, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer = answer
        self.plan: list[Any] = []
        self.requests: list[Any] = []
        self.headers: list[Any] = []
        self.looks: list[str] = []
        self.health: Any = 404
        self.delay = 0.0
        self.connections = self.under_way = self.busiest = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"

    def handle_error(self, *_: object) -> None:
        """Clients leave when they have waited enough."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.looks.append(self.path)
        self._meet(self.server.health, None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.under_way += 1
            self.server.busiest = max(self.server.busiest, self.server.under_way)
            request = json.loads(body) if body[:1] == b"{" else body
            self.server.requests.append(request)
            self.server.headers.append(dict(self.headers))
            step = self.server.plan.pop(0) if self.server.plan else 200
        try:
            time.sleep(self.server.delay)
            self._meet(step, request)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def _meet(self, step: Any, request: Any) -> None:
        if step == "hang":
            time.sleep(LONG)
        elif step == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif step == "slow headers":
            self._drip(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        elif step == "slow body":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n")
            self._drip(b'{"scores": [1.0]}' + b" " * 43)
        elif step == "cut":
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"scores"')
            self.close_connection = True
        elif step == "huge":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
            for _ in range(100):
                self.wfile.write(b" " * 999999)
        elif step == "no http":
            self.wfile.write(b"\x16\x03\x01 what is this\r\n\r\n")
            self.close_connection = True
        elif isinstance(step, tuple):  # a redirect
            self.send_response(step[0])
            self.send_header("Location", step[1])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif isinstance(step, bytes):
            self._send(200, step)
        elif isinstance(step, dict):
            self._send(200, json.dumps(step).encode())
        elif step == 200:
            self._send(200, json.dumps(self.server.answer(request)).encode())
        else:
            self._send(step, b'{"error": "no"}')

    def _drip(self, data: bytes) -> None:
        for byte in data:
            self.wfile.write(bytes([byte]))
            time.sleep(LONG / len(data))

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(answer: Answer, port: int = 0) -> Iterator[Server]:
    server = Server(answer, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
