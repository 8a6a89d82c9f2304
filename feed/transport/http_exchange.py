"""Requests and responses of HTTP/1.1, as the application sees them (ASGI)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from starlette.types import Message

from feed.transport.http_rules import Headers


class HttpExchange:
    """One request and its response: the application's scope, `receive` and `send`.

    Args:
        writable: set while the transport takes more data.
        default_headers: returns the headers of every response, such as the date.
        on_complete: called when the response is complete.

    Attributes:
        keep_alive: whether the connection stays open after the response.
        body: the request's body, if the application reads it.
        is_done: set when the response is complete or the client is gone.
    """

    def __init__(
        self,
        scope: dict[str, Any],
        transport: asyncio.Transport,
        writable: asyncio.Event,
        default_headers: Callable[[], Headers],
        on_complete: Callable[[], None],
        *,
        keep_alive: bool,
    ) -> None:
        self._transport = transport
        self._writable = writable
        self._default_headers = default_headers
        self._on_complete = on_complete
        self.scope = scope
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.has_started = False
        self.is_done = asyncio.Event()
        self._has_body = scope["method"] != "HEAD"
        self._is_chunked = False
        self._was_received = False

    async def receive(self) -> Message:
        if not self._was_received:
            self._was_received = True
            return {"type": "http.request", "body": bytes(self.body), "more_body": False}
        await self.is_done.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self._writable.wait()
        if self.is_done.is_set() or self._transport.is_closing():
            return
        if message["type"] == "http.response.start":
            self._start(message)
            return
        body, is_last = message.get("body", b""), not message.get("more_body", False)
        if self._is_chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body = chunk + b"0\r\n\r\n" if is_last else chunk
        if body and self._has_body:
            self._transport.write(body)
        if is_last:
            self.is_done.set()
            self._on_complete()

    def _start(self, message: Message) -> None:
        self.has_started = True
        headers = [*self._default_headers(), *message.get("headers", ())]
        if any(b"\r" in value or b"\n" in value for _, value in headers):
            raise RuntimeError("a response header contains a line break")
        names = {name.lower(): value.lower() for name, value in headers}
        if names.get(b"connection") == b"close":
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append((b"connection", b"close"))
        status = message["status"]
        if b"content-length" not in names and self._has_body and status not in (204, 304):
            self._is_chunked = True
            headers.append((b"transfer-encoding", b"chunked"))
        self._transport.write(response_head(status, headers))

    async def send_failure(self) -> None:
        """Send the response for an application that has failed before it sent any."""
        text = b"Internal Server Error"
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(text)),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": text})


def response_head(status: int, headers: Headers) -> bytes:
    """Build the status line and headers of a response."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    phrase = HTTPStatus(status).phrase.encode("ascii")
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, phrase, b"".join(lines))


def connection_scope(
    transport: asyncio.Transport, path: bytes, query: bytes, headers: Headers, state: dict[str, Any]
) -> dict[str, Any]:
    """Return what the ASGI scopes of HTTP requests and of WebSockets have in common."""
    client, server = (transport.get_extra_info(name) for name in ("peername", "sockname"))
    return {
        "server": server and server[:2],
        "client": client and client[:2],
        "root_path": "",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "headers": headers,
        "state": state.copy(),
    }
