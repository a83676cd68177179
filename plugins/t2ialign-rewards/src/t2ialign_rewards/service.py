"""A careful client of HTTP services: for the reward ``remote``, and for judges behind an API.

Connections are reused, requests run at the same time, redirects are never followed (they would carry a token to another
host), answers are bounded in bytes and in time, and a server that is away is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx2 as httpx

from t2ialign.errors import RewardError, Unavailable, UsageError
from t2ialign.serve import protocol
from t2ialign.serve.protocol import shown

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Bytes of an answer.
MOST_BYTES = 16 * 2**20
#: Answers after which a server is waited for as if it were away.
BUSY = (429, 502, 503, 504)
LONGEST_PAUSE = 30.0
#: Addresses of this machine, which no proxy can reach.
OWN_ADDRESSES = ("all://localhost", "all://127.0.0.1", "all://[::1]")
#: Seconds for which a server that failed is asked only where no other is there.
AVOIDED = 5.0
#: Seconds in which a server says whether it speaks our protocol; ours does so at once, whatever else it is doing.
INTRODUCTION = 2.0


@dataclass(frozen=True)
class Patience:
    """How long a client goes on.

    Attributes:
        timeout: seconds for one answer, from the first byte sent to the last received.
        silence: seconds without a byte.
        retries: further tries after an answer that is late, wrong or says 5xx.
        backoff: seconds before the first further try, doubled for each next one.
        wait: seconds for which a server that cannot be reached, or says that it is busy, is asked again.
    """

    timeout: float = 60.0
    silence: float = 60.0
    retries: int = 3
    backoff: float = 1.0
    wait: float = 600.0

    def pause(self, attempt: int) -> float:
        return min(self.backoff * 2.0 ** min(attempt, 30), LONGEST_PAUSE)


class Wrong(Exception):
    """An answer that is not what was asked for; another try may do better."""


class _Away(Exception):
    """The server cannot be reached, or says that it has no time."""


class Service:
    """Servers that answer the same questions.

    Args:
        urls: of all servers; a request goes to the one with the fewest under way, and after a failure to another.
        headers: sent with every request.
        concurrency: requests under way at once, for each server.
        introduced: ask every server once, before the first request, whether it speaks our protocol.

    Attributes:
        ours: whether all of them do; False while one has not been asked.
    """

    def __init__(
        self,
        urls: Sequence[str],
        patience: Patience,
        headers: Mapping[str, str] | None = None,
        concurrency: int = 4,
        introduced: bool = False,
    ) -> None:
        self.urls, self.patience, self.headers = list(urls), patience, dict(headers or {})
        self.concurrency = concurrency
        self.ours = False
        self._strangers = list(self.urls) if introduced else []
        self._under_way = dict.fromkeys(self.urls, 0)
        self._failed_at = dict.fromkeys(self.urls, float("-inf"))
        self._client: httpx.AsyncClient | None = None
        self._slots: asyncio.Semaphore | None = None
        self._introducing = asyncio.Lock()

    def begin(self, body: Callable[[], tuple[bytes, str]], read: Callable[[bytes], T]) -> Future[T]:
        """Start one request; it runs while others work.

        Args:
            body: makes the request's body and its content type, on another thread.
            read: makes an answer of a body; raises ``Wrong`` where it is none.
        """
        return _run(self._ask(body, read))

    async def _ask(self, body: Callable[[], tuple[bytes, str]], read: Callable[[bytes], T]) -> T:
        """
        Raises:
            RewardError: a server refuses, or no try succeeded.
            Unavailable: no server could be reached in time.
        """
        if self._client is None:
            times = httpx.Timeout(self.patience.silence, connect=min(self.patience.silence, 10.0), pool=None)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            own = dict.fromkeys(OWN_ADDRESSES)  # None: no proxy, whatever the environment says
            self._client = httpx.AsyncClient(timeout=times, limits=limits, follow_redirects=False, mounts=own)
            self._slots = asyncio.Semaphore(self.concurrency * len(self.urls))
        assert self._slots is not None
        async with self._slots:
            async with self._introducing:
                await self._introduce(self._client)
            content, kind = await asyncio.to_thread(body)
            failures = absences = 0
            away_since: float | None = None
            while True:
                url = self._next()
                try:
                    self._under_way[url] += 1
                    async with asyncio.timeout(self.patience.timeout):
                        answer = await self._once(self._client, url, content, kind)
                    return await asyncio.to_thread(read, answer)
                except _Away as error:
                    absences += 1
                    away_since = away_since or time.monotonic()
                    if (away := time.monotonic() - away_since) >= self.patience.wait:
                        raise Unavailable(f"{_all(self.urls)} has been away for {away:.0f} s: {error}") from error
                    pause = min(self.patience.pause(absences - 1), max(0.0, self.patience.wait - away))
                    if absences == 1:
                        log.warning("%s is away: %s; asking again for %g s", place(url), error, self.patience.wait)
                except (Wrong, TimeoutError) as error:
                    reason = str(error) or f"no answer within {self.patience.timeout:g} s"
                    failures, away_since = failures + 1, None
                    if failures > self.patience.retries:
                        raise RewardError(f"{place(url)} failed {failures} times, at last: {reason}") from error
                    pause = self.patience.pause(failures - 1)
                    log.warning("%s: %s (try %d of %d)", place(url), reason, failures, self.patience.retries + 1)
                finally:
                    self._under_way[url] -= 1
                self._failed_at[url] = time.monotonic()
                if absences + failures >= len(self.urls):  # else another server is asked at once
                    await asyncio.sleep(pause)

    async def _introduce(self, client: httpx.AsyncClient) -> None:
        """Ask those that have not answered yet; one that is away is asked again at the next request."""
        while self._strangers:
            answer = await _health(client, urljoin(self._strangers[0], "health"), self.headers)
            if answer is None:
                return
            self._strangers = self._strangers[1:] if protocol.speaks(answer) else []  # one foreign server decides
            self.ours = not self._strangers and protocol.speaks(answer)

    def _next(self) -> str:
        """The server with the fewest requests under way, among those that did not just fail if there are any."""
        now = time.monotonic()
        return min(self.urls, key=lambda url: (now - self._failed_at[url] < AVOIDED, self._under_way[url]))

    async def _once(self, client: httpx.AsyncClient, url: str, content: bytes, kind: str) -> bytes:
        """One try: the body of a 200."""
        headers = {"Content-Type": kind, "Accept": "application/json", **self.headers}
        try:
            async with client.stream("POST", url, content=content, headers=headers) as response:
                body = await _bounded(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise _Away(str(error) or type(error).__name__) from error
        except httpx.TimeoutException as error:
            raise Wrong(f"no byte for {self.patience.silence:g} s") from error
        except httpx.HTTPError as error:
            raise Wrong(f"{type(error).__name__}: {error}") from error
        status = response.status_code
        if status == 200:
            return body
        said = f"HTTP {status}: {shown(body)}"
        if status in BUSY:
            raise _Away(said)
        if 300 <= status < 400:
            raise RewardError(f"{place(url)} redirects (HTTP {status}), which is not followed; give the final address")
        if status < 500:
            raise RewardError(f"{place(url)} refused the request: {said}")
        raise Wrong(said)


async def _health(client: httpx.AsyncClient, url: str, headers: Mapping[str, str]) -> bytes | None:
    """What a server says of itself, b"" for nothing that can be read in time; None: it is away."""
    try:
        async with asyncio.timeout(INTRODUCTION):
            # A foreign server may be one that has a single connection at a time.
            async with client.stream("GET", url, headers={**headers, "Connection": "close"}) as response:
                body = await _bounded(response)
                return body if response.status_code == 200 else b""
    except httpx.ConnectError:
        return None
    except (httpx.HTTPError, Wrong, TimeoutError):
        return b""


async def _bounded(response: httpx.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MOST_BYTES:
            raise Wrong(f"the answer is larger than {MOST_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def place(url: str) -> str:
    """A URL as it may be shown: without a name, a password or a query."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _all(urls: Sequence[str]) -> str:
    return " and ".join(map(place, urls))


def bearer(variable: str | None, who: str) -> dict[str, str]:
    """The header with the token in an environment variable, or none.

    Raises:
        UsageError: it is not set.
    """
    if variable is None:
        return {}
    if not os.environ.get(variable):
        raise UsageError(f"{who}: environment variable {variable} (token_variable) is not set")
    return {"Authorization": f"Bearer {os.environ[variable]}"}


_loop: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()


def _run(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the one loop of this process, which runs on a thread of its own."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="requests", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(work, _loop)
