"""The opening handshake of WebSocket connections (RFC 6455), answered by an ASGI endpoint.

The HTTP protocol switches a connection to `WebSocketProtocol` when a client asks for an upgrade.
An ASGI endpoint answers the handshake. It finds the protocol object in `scope["extensions"]`, hands
the client over to callbacks (`hand_over`) and returns. If it waited for messages instead, it would
keep a task, a dozen stack frames of middleware and the request alive: about 20 kB for each of
thousands of clients that rarely send anything.

`AsgiSink` serves clients on other ASGI servers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final

import uvicorn
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.protocol import SERVER
from websockets.protocol import Protocol as FrameParser
from websockets.server import ServerProtocol

from feed.transport.http_messages import connection_scope
from feed.transport.websocket import OnMessage, WebSocketConnection, break_cycle
from tickcast.wire.encoding import TEXT, Encoding, build_frame, split_frames
from tickcast.wire.errors import CLOSE_GRACE_S, CloseCode

# Key of the protocol object in `scope["extensions"]`.
EXTENSION: Final = "tickcast.sink"

# The code that ASGI prescribes for a client that is gone without a close frame.
_NO_CODE: Final = 1005
# The only version of the WebSocket protocol.
_VERSION: Final = "13"

logger = logging.getLogger("tickcast.connection")
# At "debug" it would log every frame, with credentials; `tickcast.logs` does not allow that.
_library_logger: Final = logging.getLogger("websockets.server")
# Creates responses for all connections; it keeps nothing of them.
_responses: Final = ServerProtocol(logger=_library_logger)


class WebSocketProtocol(WebSocketConnection):
    """The class for `uvicorn.Config(ws=…)`."""

    __slots__ = ("_app", "_app_state", "_endpoint", "_max_size")

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._app: Any = config.loaded_app
        self._app_state = app_state
        self._max_size = config.ws_max_size
        # Answers the handshake; None after it has returned or handed the client over.
        self._endpoint: _Endpoint | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._endpoint is not None:
            self.end(_NO_CODE)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._endpoint is not None:
            self.refuse(_failure())
        super().shutdown()

    def begin_handshake(self, data: bytes) -> None:
        """Check the request, which `feed.transport.http` has bounded, and start the endpoint.

        Call this after `connection_made`. From then on `data_received` takes the client's frames.
        """
        # A separate parser: it keeps the request, which takes more memory than all else here.
        handshake = ServerProtocol(logger=_library_logger)
        handshake.receive_data(data)
        request = next(iter(handshake.events_received()), None)
        if not isinstance(request, Request):  # The library is stricter than `http_messages`.
            self._discards_data = True
            self.transport.abort()
            return
        if request.headers.get_all("Sec-WebSocket-Version") == [_VERSION]:
            response = handshake.accept(request)
        else:
            # The library would not name the version (RFC 6455, section 4.2.2).
            response = handshake.reject(HTTPStatus.UPGRADE_REQUIRED, "no such version\n")
            response.headers["Connection"] = "Upgrade"
            response.headers["Upgrade"] = "websocket"
            response.headers["Sec-WebSocket-Version"] = _VERSION
        break_cycle(handshake)
        self._parser = FrameParser(SERVER, max_size=self._max_size, logger=_library_logger)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self.refuse(response)
            return
        endpoint = self._endpoint = _Endpoint(self, response)
        self.on_message, self.on_end = endpoint.add_message, endpoint.add_end
        self.on_pause, self.on_drain = endpoint.pause, endpoint.resume
        self._start_task(self._run_endpoint(endpoint, self._scope_of(request)))

    def _scope_of(self, request: Request) -> dict[str, Any]:
        path, _, query = request.path.encode("ascii").partition(b"?")
        headers = [
            (name.encode("ascii"), value.encode("latin-1"))
            for name, value in request.headers.raw_items()
        ]
        offers = request.headers.get_all("Sec-WebSocket-Protocol")
        return connection_scope(self.transport, path, query, headers, self._app_state) | {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if self.transport.get_extra_info("sslcontext") else "ws",
            "subprotocols": [each.strip() for line in offers for each in line.split(",")],
            "extensions": {"websocket.http.response": {}, EXTENSION: self},
        }

    async def _run_endpoint(self, endpoint: _Endpoint, scope: dict[str, Any]) -> None:
        """Run the endpoint; keep the connection open if it has handed the client over."""
        try:
            await self._turns.wait_for_start()
            await self._app(scope, endpoint.receive, endpoint.send)
        except _ClientGone:
            pass
        except BaseException:
            logger.exception("a bug in the endpoint")
        else:
            if self._endpoint is None:
                return
            if not (self.is_accepted or self.close_sent):
                logger.error("the endpoint returned without answering the handshake")
        self._endpoint = None
        self.refuse(_failure())
        if self._abort_timer is None:
            self.transport.close()

    def accept(self, response: Response) -> None:
        """Complete the handshake."""
        self.is_accepted = True
        self.transport.write(response.serialize() + self._pong)
        self._pong = b""
        self._schedule_ping()

    def refuse(self, response: Response) -> None:
        """Answer the handshake with another response and close; does nothing if it is answered."""
        if not (self.is_accepted or self.close_sent or self.transport.is_closing()):
            self.close_sent = True
            self.transport.write(response.serialize())
            self.transport.close()
            self._abort_later()

    def hand_over(self, on_message: OnMessage, on_end: Callable[[int], None]) -> None:
        """Serve the client by callbacks from now on, so that the endpoint can return.

        Args:
            on_message: called with each message, one at a time, after the coroutine returned for
                the previous message has finished. If it raises, the connection ends.
            on_end: called once with the close code, soon after the last message.
        """
        endpoint, self._endpoint = self._endpoint, None
        if self._end_code is not None:
            self._drop_callbacks()
            self.loop.call_soon(on_end, self._end_code)
            return
        self.on_message, self.on_end = on_message, on_end
        for message in endpoint.unread() if endpoint is not None else ():
            self._handle_message(message)
        if self._waiting is None:
            self.resume_reading()


class _Endpoint:
    """The ASGI side of a connection, until its client is handed over: `receive` and `send`."""

    def __init__(self, protocol: WebSocketProtocol, response: Response) -> None:
        self._protocol = protocol
        self._response = response
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._events.put_nowait({"type": "websocket.connect"})
        self._writable = asyncio.Event()
        self._writable.set()
        self._denial: Message = {}
        self._body = b""
        self.pause, self.resume = self._writable.clear, self._writable.set

    def add_message(self, message: str | bytes) -> None:
        kind = "text" if isinstance(message, str) else "bytes"
        self._events.put_nowait({"type": "websocket.receive", kind: message})
        self._protocol.pause_reading()

    def add_end(self, code: int) -> None:
        self._events.put_nowait({"type": "websocket.disconnect", "code": code})
        self._writable.set()

    def unread(self) -> Iterator[str | bytes]:
        """Return the messages that the endpoint has not received."""
        while not self._events.empty():
            event = self._events.get_nowait()
            if event["type"] == "websocket.receive":
                yield event["text"] if "text" in event else event["bytes"]

    async def receive(self) -> Message:
        event = await self._events.get()
        if self._events.empty():
            self._protocol.resume_reading()
        return event

    async def send(self, message: Message) -> None:
        await self._writable.wait()
        protocol = self._protocol
        if protocol.close_sent or protocol.transport.is_closing():
            raise _ClientGone
        match message["type"]:
            case "websocket.accept":
                headers = _decoded(message.get("headers", ()))
                if subprotocol := message.get("subprotocol"):
                    headers["Sec-WebSocket-Protocol"] = subprotocol
                self._response.headers.update(headers)
                protocol.accept(self._response)
            case "websocket.http.response.start":
                self._denial = message
            case "websocket.http.response.body":
                self._body += message.get("body", b"")
                if not message.get("more_body", False):
                    response = _responses.reject(self._denial["status"], self._body.decode())
                    headers = _decoded(self._denial["headers"])
                    for name in headers:
                        response.headers.pop(name, None)
                    response.headers.update(headers)
                    protocol.refuse(response)
            case "websocket.send" if message.get("text") is not None:
                protocol.transport.write(build_frame(message["text"].encode(), Encoding.JSON))
            case "websocket.send":
                protocol.transport.write(build_frame(message["bytes"], Encoding.MSGPACK))
            case "websocket.close" if protocol.is_accepted:
                protocol.finish(b"", message.get("code", 1000), message.get("reason") or "")
            case "websocket.close":
                protocol.refuse(_responses.reject(HTTPStatus.FORBIDDEN, ""))
            case kind:
                raise RuntimeError(f"unexpected ASGI message: {kind}")


class _ClientGone(OSError):
    """Raised when the endpoint sends to a client that is gone; Starlette expects an OSError."""


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])


def _failure() -> Response:
    """Return the response for an endpoint that does not answer the handshake."""
    return _responses.reject(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error")


class AsgiSink:
    """The sink for other ASGI servers: it sends frame by frame, from a separate task, `run`.

    Attributes:
        paused, on_pause, write: see `feed.fanout.outbox.Sink`.
        on_drain: called when everything has been sent.
        on_shutdown, on_flood: never called, because only our own server reports these events.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._pending: list[bytes] = []
        self._size = 0
        self._has_frames = asyncio.Event()
        self._close: tuple[CloseCode, str] | None = None
        self._task = asyncio.current_task()
        self.paused = False
        self.write: Callable[[bytes], None] = self._add
        self.on_pause: Callable[[], None] = lambda: None
        self.on_drain: Callable[[], None] = lambda: None
        self.on_shutdown: Callable[[], bytes] = bytes
        self.on_flood: Callable[[], None] = lambda: None

    def buffered(self) -> int:
        """The number of bytes taken that the server has not accepted yet."""
        return self._size

    def finish(self, last_frames: bytes, code: CloseCode, reason: str = "") -> None:
        """Send the last frames and close; cancel the endpoint task if the client does not read."""
        self._add(last_frames)
        self._close = (code, reason)
        if self._task is not None:
            asyncio.get_running_loop().call_later(CLOSE_GRACE_S, self._task.cancel)

    async def run(self) -> None:
        """Send until `finish` was called and everything is sent, or the client is gone."""
        try:
            while self._close is None or self._pending:
                await self._has_frames.wait()
                self._has_frames.clear()
                pending, self._pending = self._pending, []
                for frames in pending:
                    for opcode, payload in split_frames(frames):
                        if opcode == TEXT:
                            await self._websocket.send_text(payload.decode())
                        else:
                            await self._websocket.send_bytes(payload)
                    self._size -= len(frames)
                self.paused = False
                self.on_drain()
            await self._websocket.close(*self._close)
        except (WebSocketDisconnect, RuntimeError):
            pass  # The client is gone; the reader notices too.

    def _add(self, data: bytes) -> None:
        self._pending.append(data)
        self._size += len(data)
        self.paused = True
        self.on_pause()
        self._has_frames.set()
