"""Who may read `/metrics`, and where: beside everything else, or on an address of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from feed.engine import Engine
from feed.headers import SecurityHeaders
from feed.metrics import CONTENT_TYPE, render_metrics


def answer_scrape(request: Request, engine: Engine) -> Response:
    """All metrics, or 401 where a token is set and the request does not carry it.

    Source: RFC 6750, sections 2.1 and 3.
    """
    token = engine.settings.metrics_token
    if token is not None and not _carries(request.headers.get("authorization", ""), token):
        return PlainTextResponse(
            "a token is needed\n", 401, headers={"WWW-Authenticate": 'Bearer realm="metrics"'}
        )
    return Response(render_metrics(engine), media_type=CONTENT_TYPE)


def _carries(authorization: str, token: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    # In constant time, or guesses could be told apart by how far they are right.
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    return right and scheme.lower() == "bearer"


@contextlib.asynccontextmanager
async def serving_metrics(engine: Engine, listener: socket.socket) -> AsyncIterator[None]:
    """Serve `/metrics`, and nothing else, on a listening socket of its own."""

    async def metrics(request: Request) -> Response:
        return answer_scrape(request, engine)

    app = Starlette(routes=[Route("/metrics", metrics)])
    app.router.redirect_slashes = False
    config = uvicorn.Config(
        SecurityHeaders(app),
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _SecondServer(config)
    task = asyncio.create_task(server.serve([listener]), name="metrics")
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _SecondServer(uvicorn.Server):
    """A uvicorn server that leaves the signals to the first one of its process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
