"""One WebSocket connection: reads the client's messages and ties session, outbox and socket."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import Final

from starlette.websockets import WebSocket

from feed import protocol
from feed.asgi_sink import AsgiSink
from feed.engine import Engine
from feed.errors import CLOSES, BrokerUnavailable, BrokerUnsuitable, CloseCode, Fault
from feed.outbox import Outbox
from feed.pieces import message_frame
from feed.session import Session
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
    connection = Connection(websocket, sink, engine)
    session = Session(
        engine.hub,
        connection.outbox,
        feed,
        encoding,
        extended=subprotocol is not None,
        subscriptions_max=engine.settings.subscriptions_max,
    )
    if isinstance(sink, AsgiSink):
        sender = asyncio.create_task(sink.run())
        try:
            with suppress(asyncio.CancelledError):
                await connection.serve(session)
        finally:
            await end_tasks([sender])
    else:
        await connection.serve(session)


class Connection:
    """The moving part between one socket and its session."""

    __slots__ = ("_beating", "_engine", "_session", "_sink", "_websocket", "outbox")

    def __init__(
        self, websocket: WebSocket, sink: TransportSink | AsgiSink, engine: Engine
    ) -> None:
        self._websocket = websocket
        self._sink = sink
        self._engine = engine
        self._session: Session | None = None
        self._beating: asyncio.TimerHandle | None = None
        self.outbox = Outbox(sink, engine.settings.outbox_max_bytes, self._give_up_slow_client)

    async def serve(self, session: Session) -> None:
        """Talk until either side ends it."""
        self._session = session
        self._sink.on_drain = session.drain
        self._sink.on_shutdown = self._last_words
        counters = self._engine.hub.counters
        counters.connections += 1
        self._engine.sessions.add(session)
        code = CloseCode.INTERNAL_ERROR.value
        try:
            session.greet()
            while True:
                event = await self._websocket.receive()
                if event["type"] == "websocket.disconnect":
                    code = event["code"]
                    return
                text: str | None = event.get("text")
                await self._answer(session, event["bytes"] if text is None else text)
        except Exception:
            logger.exception("a bug in a connection")
            self._finish(Fault.INTERNAL_ERROR)
        finally:
            self._engine.sessions.discard(session)
            counters.closed[code] += 1
            if self._beating is not None:
                self._beating.cancel()
            session.leave()

    async def _answer(self, session: Session, message: str | bytes) -> None:
        heartbeat_ms = session.heartbeat_ms
        request = session.read(message)
        if session.heartbeat_ms != heartbeat_ms:
            self._beat_later(session)
        if request is None:
            return
        try:
            epoch = await self._engine.upstream.want(session.feed, session.wanted_by(request))
        except (BrokerUnavailable, BrokerUnsuitable) as error:
            logger.warning("could not serve a request: %s", error)
            session.refuse(request, Fault.BROKER_UNAVAILABLE, "try again later")
            return
        if not self.outbox.closed:
            session.complete(request, epoch)

    def _beat(self, session: Session) -> None:
        session.beat(self._engine.upstream.subscriber.connected)
        self._beat_later(session)

    def _beat_later(self, session: Session) -> None:
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        if session.heartbeat_ms and not self.outbox.closed:
            loop = asyncio.get_running_loop()
            self._beating = loop.call_later(session.heartbeat_ms / 1000, self._beat, session)

    def _give_up_slow_client(self) -> None:
        logger.info("closing a slow client")
        self._finish(Fault.SLOW_CLIENT)

    def _finish(self, fault: Fault) -> None:
        if self._session is not None:
            words = message_frame(protocol.error(fault), self._session.encoding)
            self._sink.finish(words, CLOSES[fault], fault.words)

    def _last_words(self) -> bytes:
        retry_ms = random.randint(*_RETRY_SPREAD_MS)
        return self._session.farewell(retry_ms) if self._session else b""
