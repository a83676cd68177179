"""The server as an ASGI application. FastAPI is imported here and nowhere else."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from t2ialign.errors import T2IAlignError
from t2ialign.serve import protocol
from t2ialign.serve.batcher import Batcher, Full

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """What one client may ask of a server.

    Attributes:
        body: bytes of a request.
        images: of a request.
        pixels: of an image.
        seconds: until a request is answered.
    """

    body: int = 256 * 2**20
    images: int = 256
    pixels: int = 4096 * 4096
    seconds: float = 600.0


class Refused(Exception):
    """A request that is not answered with scores."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def application(batcher: Batcher, bounds: Bounds, token: str | None = None) -> FastAPI:
    """``GET /health`` and ``POST /rewards``; see ``t2ialign.serve.protocol``.

    Args:
        token: clients must send it as ``Authorization: Bearer``.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="t2ialign rewards", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(Refused)
    async def refuse(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": str(error)}, error.status, headers)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"protocol": protocol.VERSION, "rewards": list(batcher.rewards), "waiting": batcher.waiting}

    @app.post("/rewards")
    async def rewards(request: Request) -> JSONResponse:
        if token is not None:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                raise Refused(401, "this server asks for a token (token_variable of the remote reward)")
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind not in (protocol.JSON, protocol.TENSORS):  # no page in a browser may send these unasked
            raise Refused(415, f"the content type must be {protocol.JSON} or {protocol.TENSORS}")
        body = await _body(request, bounds.body)
        try:
            question = await asyncio.to_thread(protocol.asked, body, kind, bounds.images, bounds.pixels)
        except protocol.ProtocolError as error:
            raise Refused(400, str(error)) from error
        name = _chosen(question.reward, list(batcher.rewards))
        return JSONResponse({"protocol": protocol.VERSION, "scores": await _scores(batcher, name, question, bounds)})

    return app


async def _body(request: Request, most: int) -> bytes:
    """The request's body, no byte more than allowed."""
    too_much = Refused(413, f"the body is larger than {most} bytes; send fewer images at once")
    if int(request.headers.get("content-length") or 0) > most:
        raise too_much
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_much
            parts.append(part)
    except ClientDisconnect as error:
        raise Refused(400, "the client left") from error
    return b"".join(parts)


def _chosen(name: str | None, names: list[str]) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise Refused(404, f"reward {name!r} is not served; choose one of {', '.join(names)}")
    return name


async def _scores(batcher: Batcher, name: str, question: protocol.Question, bounds: Bounds) -> list[float | None]:
    try:
        future = batcher.submit(name, question)
    except Full as error:
        raise Refused(503, "too many images wait; try again later") from error
    try:
        scores = await asyncio.wait_for(asyncio.wrap_future(future), bounds.seconds)
    except TimeoutError as error:
        raise Refused(503, f"not scored within {bounds.seconds:g} seconds") from error
    except T2IAlignError as error:  # says what is wrong with a prompt or an image
        raise Refused(422 if error.exit_code == 2 else 500, str(error)) from error
    except Exception as error:
        log.exception("reward '%s' failed", name)
        raise Refused(500, f"reward '{name}' failed: {type(error).__name__}") from error
    bad = [score for score in scores if not math.isfinite(score)]
    if bad and not question.missing:
        raise Refused(422, f"reward '{name}' is {bad[0]} for an image")
    return [score if math.isfinite(score) else None for score in scores]
