"""Opens connections: admits the client, negotiates the encoding and starts its session."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.responses import PlainTextResponse, Response
from starlette.websockets import WebSocket

from feed.access.action_policy import MessageLimiter
from feed.server.connection import Connection
from feed.server.engine import Engine
from feed.server.session import Session
from feed.transport.asgi_sink import AsgiSink
from feed.transport.handshake import EXTENSION, WebSocketProtocol
from tickcast.tasks import cancel_and_wait
from tickcast.wire import messages as protocol
from tickcast.wire.errors import HandshakeRefused


async def serve_connection(websocket: WebSocket, feed: str, engine: Engine) -> None:
    """Answer a handshake on one feed and serve the client until it disconnects."""
    try:
        visitor = await engine.admission.admit(websocket.scope)
    except HandshakeRefused as refusal:
        await websocket.send_denial_response(denial(refusal))
        return
    encoding, subprotocol = protocol.choose_encoding(
        websocket.scope["subprotocols"],
        websocket.headers.get("content-type", ""),
        websocket.query_params.get("encoding"),
    )
    try:
        await websocket.accept(subprotocol=subprotocol)
    except BaseException:
        engine.admission.release(visitor)
        raise
    raw: WebSocketProtocol | None = websocket.scope["extensions"].get(EXTENSION)
    sink = raw or AsgiSink(websocket)
    connection = Connection(sink, engine, visitor)
    settings = engine.settings
    session = Session(
        engine.hub,
        connection.outbox,
        feed,
        encoding,
        extended=subprotocol is not None,
        subscriptions_max=settings.subscriptions_max,
        limiter=MessageLimiter(settings.messages_per_s, settings.messages_burst),
        grant=visitor.grant,
    )
    connection.begin(session)
    if isinstance(sink, WebSocketProtocol):
        sink.limit_address(engine.admission.limiter_of(websocket.scope))
        sink.hand_over(connection.receive, connection.end)
        return
    sender = asyncio.create_task(sink.run())
    try:
        with suppress(asyncio.CancelledError):
            await connection.serve(websocket)
    finally:
        await cancel_and_wait([sender])


def denial(refusal: HandshakeRefused) -> Response:
    """Build the HTTP response that explains why a handshake was refused."""
    headers = {}
    if refusal.retry_after_s:
        headers["Retry-After"] = str(refusal.retry_after_s)
        # If the connection stayed open, the client would send its next request at once.
        headers["Connection"] = "close"
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return PlainTextResponse(f"{refusal}\n", refusal.status, headers)
