"""One WebSocket connection: reads the client's messages and ties session, outbox and socket."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from starlette.websockets import WebSocket

from feed import protocol
from feed.asgi_sink import AsgiSink
from feed.engine import Engine
from feed.errors import CLOSES, BrokerUnavailable, BrokerUnsuitable, CloseCode, Fault
from feed.outbox import Outbox
from feed.pieces import message_frame
from feed.session import Request, Session
from feed.tasks import end_tasks
from feed.websocket import EXTENSION, TransportSink

_RETRY_SPREAD_MS: Final = (100, 2000)

logger = logging.getLogger("tickcast.connection")


async def serve_connection(websocket: WebSocket, feed: str, engine: Engine) -> None:
    """Answer a handshake on one feed, and serve the client until it is gone."""
    encoding, subprotocol = protocol.choose_encoding(
        websocket.scope["subprotocols"],
        websocket.headers.get("content-type", ""),
        websocket.query_params.get("encoding"),
    )
    await websocket.accept(subprotocol=subprotocol)
    raw: TransportSink | None = websocket.scope["extensions"].get(EXTENSION)
    sink = raw or AsgiSink(websocket)
    connection = Connection(sink, engine)
    session = Session(
        engine.hub,
        connection.outbox,
        feed,
        encoding,
        extended=subprotocol is not None,
        subscriptions_max=engine.settings.subscriptions_max,
    )
    connection.begin(session)
    if isinstance(sink, TransportSink):
        sink.hand_over(connection.take, connection.end)
        return
    sender = asyncio.create_task(sink.run())
    try:
        with suppress(asyncio.CancelledError):
            await connection.serve(websocket)
    finally:
        await end_tasks([sender])


class Connection:
    """The moving part between one socket and its session."""

    __slots__ = ("_beating", "_engine", "_session", "_sink", "outbox")

    def __init__(self, sink: TransportSink | AsgiSink, engine: Engine) -> None:
        self._sink = sink
        self._engine = engine
        self._beating: asyncio.TimerHandle | None = None
        self.outbox = Outbox(sink, engine.settings.outbox_max_bytes, self._give_up_slow_client)

    def begin(self, session: Session) -> None:
        """Say the first words; messages are to come through `take`, up to an `end`."""
        self._session = session
        self._sink.on_drain = self._drain
        self._sink.on_shutdown = self._last_words
        self._engine.hub.counters.connections += 1
        self._engine.sessions.add(session)
        session.greet()

    def take(self, message: str | bytes) -> Coroutine[Any, Any, None] | None:
        """Answer a message; what it returns must be awaited before the next."""
        heartbeat_ms = self._session.heartbeat_ms
        try:
            request = self._session.read(message)
        except Exception:
            self._fail()
            return None
        if self._session.heartbeat_ms != heartbeat_ms:
            self._beat_later()
        return None if request is None else self._answer(request)

    def end(self, code: int) -> None:
        """Let go of everything: the client is gone."""
        self._engine.sessions.discard(self._session)
        self._engine.hub.counters.closed[code] += 1
        self._session.leave()
        if self._session.follower is not None:
            self._engine.backfill.forget(self._session.follower)
        if self._beating is not None:
            self._beating.cancel()

    async def serve(self, websocket: WebSocket) -> None:
        """Take messages from an ASGI server's `receive` until either side ends it."""
        code = CloseCode.INTERNAL_ERROR.value
        try:
            while (event := await websocket.receive())["type"] != "websocket.disconnect":
                text: str | None = event.get("text")
                if (work := self.take(event["bytes"] if text is None else text)) is not None:
                    await work
            code = event["code"]
        finally:
            self.end(code)

    async def _answer(self, request: Request) -> None:
        session = self._session
        try:
            epoch = await self._engine.upstream.want(session.feed, session.wanted_by(request))
            if not self.outbox.closed:
                session.complete(request, epoch)
                if session.follower is not None:
                    self._engine.backfill.serve(session.follower)
        except (BrokerUnavailable, BrokerUnsuitable) as error:
            logger.warning("could not serve a request: %s", error)
            session.refuse(request, Fault.BROKER_UNAVAILABLE, "try again later")
        except Exception:
            self._fail()

    def _drain(self) -> None:
        self._session.drain()
        if self._session.follower is not None:
            self._engine.backfill.serve(self._session.follower)

    def _beat(self) -> None:
        self._session.beat(self._engine.upstream.subscriber.connected)
        self._beat_later()

    def _beat_later(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        if self._session.heartbeat_ms and not self.outbox.closed:
            loop = asyncio.get_running_loop()
            self._beating = loop.call_later(self._session.heartbeat_ms / 1000, self._beat)

    def _fail(self) -> None:
        logger.exception("a bug in a connection")
        self._finish(Fault.INTERNAL_ERROR)

    def _give_up_slow_client(self) -> None:
        logger.info("closing a slow client")
        self._finish(Fault.SLOW_CLIENT)

    def _finish(self, fault: Fault) -> None:
        words = message_frame(protocol.error(fault), self._session.encoding)
        self._sink.finish(words, CLOSES[fault], fault.words)

    def _last_words(self) -> bytes:
        return self._session.farewell(random.randint(*_RETRY_SPREAD_MS))
