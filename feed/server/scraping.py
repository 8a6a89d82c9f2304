"""Serves `/metrics`: checks the token, and optionally listens on a separate address."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from feed.server.engine import Engine
from feed.server.metrics import CONTENT_TYPE, render_metrics
from feed.server.running import FeedServer, server_config
from feed.transport.middleware import RequestLimits, SecurityHeaders

_CONNECTIONS_MAX: Final = 32
"""Few programs scrape. A new connection replaces the oldest one that has sent no request."""


def answer_scrape(request: Request, engine: Engine) -> Response:
    """Return all metrics, or 401 if a token is set and the request does not carry it.

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
    # In constant time, so that timing does not reveal how much of a guess is right.
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    return right and scheme.lower() == "bearer"


@contextlib.asynccontextmanager
async def serving_metrics(engine: Engine, listener: socket.socket) -> AsyncIterator[None]:
    """Serve only `/metrics`, on a separate listening socket."""

    async def metrics(request: Request) -> Response:
        return answer_scrape(request, engine)

    app = Starlette(routes=[Route("/metrics", metrics)])
    app.router.redirect_slashes = False
    config = server_config(
        SecurityHeaders(RequestLimits(app)),
        engine.settings,
        ws="none",
        lifespan="off",
        http_connections_max=_CONNECTIONS_MAX,
    )
    server = _MetricsServer(config)
    server.state = {
        "refused": engine.hub.counters.refused,
        "turn_budget": engine.turn_budget,
        "address_limits": engine.address_limits,
    }
    task = asyncio.create_task(server.serve([listener]), name="metrics")
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _MetricsServer(FeedServer):
    """A second server in the process, which leaves the signals to the first.

    Attributes:
        state: the lifespan state that the protocol class expects.
    """

    state: Mapping[str, Any]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state.update(self.state)
        await super().startup(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
