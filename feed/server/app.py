"""The ASGI application: routes and lifespan."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from socket import socket
from typing import Any, Final, TypedDict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from feed.access.authenticator import Authenticator
from feed.access.entitlements import Entitlements
from feed.server.connection import denial, serve_connection
from feed.server.engine import Engine, running_engine
from feed.server.listings import (
    PAGE_MAX,
    Body,
    Build,
    ListingPage,
    LongResponse,
    Pauses,
    list_latest,
    list_symbols,
)
from feed.server.metrics import answer_scrape, serving_metrics
from feed.server.middleware import RequestLimits, RootPath, SecurityHeaders
from feed.server.publishing import answer_publish
from feed.transport.address_limits import AddressLimits
from feed.transport.http import PROBES, Bodies
from feed.transport.http_messages import PUBLISH_PATH
from feed.transport.loop_time import TurnBudget
from tickcast.settings import Settings
from tickcast.wire.addresses import client_network
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import HandshakeRefused, TapeNotFound, TickcastError
from tickcast.wire.subscriptions import Subscription, is_pattern
from tickcast.wire.ticks import DEFAULT_FEED, is_feed_name, is_symbol

_PAGE_HEADERS: Final = {"Cache-Control": "no-cache"}


class _RevalidatedFiles(StaticFiles):
    """Static files that browsers revalidate, so that an upgrade takes effect."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class _State(TypedDict):
    engine: Engine
    # `feed.transport.http` also counts here what it refuses before it becomes a request.
    refused: Counter[str]
    turn_budget: TurnBudget
    # Like `turn_budget`, this limits what the protocol classes read.
    address_limits: AddressLimits
    bodies: Bodies


def create_app(
    settings: Settings,
    redis_url: str,
    dashboard: Path | None = None,
    metrics_listener: socket | None = None,
) -> ASGIApp:
    """Create the ASGI application.

    Args:
        redis_url: the store to use. `settings.redis_url` may be empty if the store is embedded.
        dashboard: a folder with the page served at `/` (`index.html`) and its files.
        metrics_listener: a socket to serve `/metrics` on while the application runs. With None,
            `/metrics` is a route like all others.

    Raises:
        InvalidSettings: the keys for authentication can't be read.
    """
    authenticator = Authenticator(settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[_State]:
        async with (
            running_engine(settings, redis_url, authenticator) as engine,
            serving_metrics(engine, metrics_listener) if metrics_listener else nullcontext(),
        ):
            yield {
                "engine": engine,
                "refused": engine.hub.counters.refused,
                "turn_budget": engine.turn_budget,
                "address_limits": engine.address_limits,
                "bodies": Bodies(),
            }

    routes: list[BaseRoute] = [
        Route("/health", _health),
        Route("/ready", _ready),
        Route("/symbols", _symbols),
        Route("/snapshot", _snapshot),
        Route("/tapes", _tapes),
        Route(PUBLISH_PATH, _publish, methods=["POST"]),
        Route("/stream", _upgrade_required),
        Route("/v2/{feed}", _upgrade_required),
        WebSocketRoute("/stream", _stream),
        WebSocketRoute("/v2/{feed}", _stream),
        WebSocketRoute("/{path:path}", _refuse),
    ]
    if metrics_listener is None:
        routes.append(Route("/metrics", _metrics))
    if dashboard is not None:
        page = dashboard / "index.html"
        routes += [
            Route("/", lambda request: FileResponse(page, headers=_PAGE_HEADERS)),
            Mount("/static", _RevalidatedFiles(directory=dashboard)),
        ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HandshakeRefused: _refused, TickcastError: _unavailable},
    )
    app.router.redirect_slashes = False  # `/stream/` is not a route.
    inner = RequestLimits(_KnownHosts(app))
    return SecurityHeaders(RootPath(inner, settings.root_path) if settings.root_path else inner)


class _KnownHosts:
    """ASGI middleware that refuses requests with an unknown host name.

    Health and readiness are exempt: load balancers request them under any name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"] not in PROBES:
            engine: Engine = scope["state"]["engine"]
            try:
                engine.admission.check_host(scope)
            except HandshakeRefused as refusal:
                if scope["type"] == "websocket":
                    await WebSocket(scope, receive, send).send_denial_response(denial(refusal))
                else:
                    await denial(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


# -- WebSocket


async def _stream(websocket: WebSocket) -> None:
    feed = websocket.path_params.get("feed", DEFAULT_FEED)
    engine: Engine = websocket.state.engine
    if _is_served(feed, engine.settings):
        await serve_connection(websocket, feed, engine)
    else:
        await _refuse(websocket)


async def _refuse(websocket: WebSocket) -> None:
    await websocket.send_denial_response(PlainTextResponse("no such feed\n", status_code=404))


def _is_served(feed: str, settings: Settings) -> bool:
    return is_feed_name(feed) and (not settings.feeds or feed in settings.feeds)


# -- HTTP


def _engine(request: Request) -> Engine:
    engine: Engine = request.state.engine
    return engine


def _json(content: object, status_code: int = 200) -> Response:
    return Response(encode(content, Encoding.JSON), status_code, media_type="application/json")


async def _upgrade_required(request: Request) -> Response:
    feed = request.path_params.get("feed", DEFAULT_FEED)
    if not _is_served(feed, _engine(request).settings):
        return PlainTextResponse("no such feed\n", status_code=404)
    return PlainTextResponse(
        "this is a WebSocket endpoint\n",
        status_code=426,
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )


async def _health(request: Request) -> Response:
    return _json({"status": "live"})


async def _ready(request: Request) -> Response:
    engine = _engine(request)
    if (problem := await engine.upstream.subscriber.diagnose()) is not None:
        return _json({"status": "not ready", "reason": problem}, 503)
    if engine.tasks.down:
        failed = ", ".join(engine.tasks.down)
        return _json({"status": "not ready", "reason": f"failed, about to restart: {failed}"}, 503)
    restarts = {name: count for name, count in engine.tasks.restarts.items() if count}
    return _json({"status": "ready"} | ({"restarts": restarts} if restarts else {}))


async def _metrics(request: Request) -> Response:
    return answer_scrape(request, _engine(request))


async def _symbols(request: Request) -> Response:
    engine, feed, page = _engine(request), _feed_of(request), _page_of(request)
    entitlements = await _entitlements_in(request, feed)
    return await _long_response(
        request,
        ("symbols", feed, entitlements, page),
        lambda: list_symbols(engine.store, feed, entitlements, page),
    )


async def _snapshot(request: Request) -> Response:
    symbols = ",".join(request.query_params.getlist("symbols"))
    patterns = [text for text in symbols.split(",") if text]
    if not patterns:
        raise HTTPException(400, "name symbols, as in /snapshot?symbols=AAPL,MSFT")
    engine, feed, page = _engine(request), _feed_of(request), _page_of(request)
    entitlements = await _entitlements_in(request, feed)
    if len(patterns) > engine.settings.subscriptions_max:
        raise HTTPException(400, f"at most {engine.settings.subscriptions_max} symbols at once")
    for pattern in patterns:
        if not is_pattern(pattern):
            raise HTTPException(400, f"{pattern[:40]!a} is not a symbol")
    return await _long_response(
        request,
        ("snapshot", feed, entitlements, tuple(patterns), page),
        lambda: list_latest(engine.store, feed, entitlements, patterns, page),
    )


def _page_of(request: Request) -> ListingPage:
    """Parse `limit` and `after`, which select a page of a listing."""
    limit, after = request.query_params.get("limit"), request.query_params.get("after", "")
    if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) <= 5):
        raise HTTPException(400, f"limit: {limit[:40]!a} is not a number from 1 to {PAGE_MAX}")
    count = PAGE_MAX if limit is None else int(limit)
    if not 1 <= count <= PAGE_MAX:
        raise HTTPException(400, f"limit: {count} is not a number from 1 to {PAGE_MAX}")
    if after and not is_symbol(after):
        raise HTTPException(400, f"after: {after[:40]!a} is not a symbol")
    return ListingPage(count, after)


async def _long_response(request: Request, key: Hashable, build: Build) -> Response:
    engine = _engine(request)
    is_limited = engine.admission.limiter_of(request.scope) is not None
    address = client_network(request.client.host) if is_limited and request.client else None
    share = engine.listings.share(key, build, address)
    try:
        return LongResponse(await share.wait(), share)
    except BaseException:
        share.release()
        raise


async def _tapes(request: Request) -> Response:
    engine = _engine(request)
    entitlements = (await engine.admission.check_request(request.scope)).entitlements
    return await _long_response(
        request, ("tapes", entitlements), lambda: _list_tapes(engine, entitlements)
    )


async def _list_tapes(engine: Engine, entitlements: Entitlements) -> Body:
    pauses = Pauses()
    try:
        listings = await engine.private_replays.list_tapes()
    except TapeNotFound as error:
        raise HTTPException(404, str(error)) from None
    found = []
    for tape in listings:
        await pauses.pause()
        streams = [Subscription(*stream) for stream in tape.streams]
        channels: dict[str, list[str]] = {}
        for channel, symbol in entitlements.narrow_all(tape.feed, dict.fromkeys(streams)):
            channels.setdefault(channel, []).append(symbol)
        if channels:
            found.append({"tape": tape.id, "feed": tape.feed, "ticks": tape.ticks,
                          "from": tape.first, "to": tape.last, "channels": channels})  # fmt: skip
    return Body(encode(found, Encoding.JSON))


async def _publish(request: Request) -> Response:
    engine, feed = _engine(request), _feed_of(request)
    grant = await engine.admission.check_publisher(request.scope)
    return await answer_publish(request, engine.publishing, feed, grant)


def _feed_of(request: Request) -> str:
    feed = request.query_params.get("feed", DEFAULT_FEED)
    if not _is_served(feed, _engine(request).settings):
        raise HTTPException(404, "no such feed")
    return feed


async def _entitlements_in(request: Request, feed: str) -> Entitlements:
    """Authorize a request for one feed.

    Raises HandshakeRefused, or HTTPException (403) if it may see nothing of this feed.
    """
    grant = await _engine(request).admission.check_request(request.scope)
    if not grant.entitlements.allows_feed(feed):
        raise HTTPException(403, f"these credentials do not cover any stream of the feed {feed}")
    return grant.entitlements


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HandshakeRefused)
    return denial(error)


async def _unavailable(request: Request, error: Exception) -> Response:
    return _json({"status": "not ready", "reason": str(error)}, 503)
