"""HTTP/1.1 requests and responses: what a request may look like, and how the application sees it.

Headers are pairs of name and value, with names in lower case.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from starlette.types import Message

# Reasons of refusals, as the metrics label them.
STALLED: Final = "stalled"
MALFORMED: Final = "malformed"
SHUT_OUT: Final = "shut_out"
ADDRESS: Final = "address"
FULL: Final = "full"

HEADERS_MAX: Final = 100
URL_MAX_BYTES: Final = 8 * 1024
HEAD_MAX_BYTES: Final = 16 * 1024
# A body that no endpoint reads is discarded.
BODY_MAX_BYTES: Final = 64 * 1024
# The path whose requests have a body that is read, and the most that it may have.
PUBLISH_PATH: Final = "/v1/publish"
PUBLISH_BODY_MAX_BYTES: Final = 1024 * 1024
# Bodies that all connections together may send at the same time.
BODIES_MAX_BYTES: Final = 64 * 1024 * 1024
# Bytes of a request to parse before its size is checked again.
SLICE_BYTES: Final = 1024
# Longest line that the WebSocket library accepts in a handshake.
_LINE_MAX_BYTES: Final = 8 * 1024

_URL: Final = re.compile(rb"[\x21-\x7e]+")
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")

_MALFORMED: Final = HTTPStatus.BAD_REQUEST
_HEAD_TOO_LARGE: Final = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
_URL_TOO_LONG: Final = HTTPStatus.REQUEST_URI_TOO_LONG
_BODY_TOO_LARGE: Final = HTTPStatus.REQUEST_ENTITY_TOO_LARGE

Headers = Sequence[tuple[bytes, bytes]]


# -- checks


class RequestRefused(Exception):
    """Raised when a request is refused; the connection is closed.

    Attributes:
        headers: extra headers of the response.
        reason: label in the metrics.
    """

    def __init__(self, status: HTTPStatus, headers: Headers = (), reason: str = MALFORMED) -> None:
        super().__init__(status.phrase)
        self.status = status
        self.headers = headers
        self.reason = reason

    def to_response(self, default_headers: Headers) -> bytes:
        """Build the response, after which the connection is closed."""
        text = f"{self}\n".encode("ascii")
        headers = [
            *default_headers,
            *self.headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(text)),
            (b"connection", b"close"),
        ]
        return response_head(self.status, headers) + text


def check_size(size: int, headers: int, body_max: int = BODY_MAX_BYTES, *, in_head: bool) -> None:
    """Check that an incomplete request is within the limits.

    Args:
        size: bytes received of the head or, after that, of the body. The size of a body includes
            the framing of its chunks and may include the end of the head.
        headers: number of headers received.
        body_max: bytes that the body may have.

    Raises:
        RequestRefused: the request is too large.
    """
    if headers > HEADERS_MAX or (in_head and size >= HEAD_MAX_BYTES):
        raise RequestRefused(_HEAD_TOO_LARGE)
    if size > body_max + SLICE_BYTES:
        raise RequestRefused(_BODY_TOO_LARGE)


def check_url_size(url: bytes) -> None:
    """Check the length of a possibly incomplete URL; raises RequestRefused."""
    if len(url) > URL_MAX_BYTES:
        raise RequestRefused(_URL_TOO_LONG)


def body_max_bytes(method: bytes, url: bytes) -> int:
    """The number of bytes that the body of a request may have."""
    # It may stand behind a prefix; see the setting `root_path`.
    reads = method == b"POST" and url.partition(b"?")[0].endswith(PUBLISH_PATH.encode())
    return PUBLISH_BODY_MAX_BYTES if reads else BODY_MAX_BYTES


def check_head(url: bytes, version: str, headers: Headers, body_max: int = BODY_MAX_BYTES) -> bool:
    """Check a complete head and return whether a body follows.

    The parser has already checked that there is no more than one Content-Length and that it is a
    number. Source: RFC 9112, sections 3.2 and 6.3.

    Raises:
        RequestRefused: the body's length is ambiguous or too large, or the URL, the version or the
            Host is bad.
    """
    if len(headers) > HEADERS_MAX:
        raise RequestRefused(_HEAD_TOO_LARGE)
    if not _URL.fullmatch(url):
        raise RequestRefused(_MALFORMED)
    if version not in ("1.0", "1.1"):
        raise RequestRefused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    fields = dict(headers)
    hosts = [name for name, _ in headers].count(b"host")
    if hosts > 1 or (version == "1.1" and not hosts):
        raise RequestRefused(_MALFORMED)
    if hosts and not _HOST.fullmatch(fields[b"host"]):
        raise RequestRefused(_MALFORMED)
    length = int(fields.get(b"content-length", 0))
    is_coded = b"transfer-encoding" in fields
    if is_coded and (b"content-length" in fields or version == "1.0"):
        raise RequestRefused(_MALFORMED)
    if length > body_max:
        raise RequestRefused(_BODY_TOO_LARGE)
    return is_coded or length > 0


def is_websocket_upgrade(headers: Headers) -> bool:
    """Whether a request asks for an upgrade to WebSocket."""
    fields = dict(headers)
    options = fields.get(b"connection", b"").lower().split(b",")
    is_upgrade = b"upgrade" in (each.strip() for each in options)
    return is_upgrade and fields.get(b"upgrade", b"").lower() == b"websocket"


def check_handshake(method: bytes, url: bytes, headers: Headers) -> None:
    """Refuse handshakes that the WebSocket library would not answer; raises RequestRefused.

    The library itself answers handshakes that it can parse, such as those with a bad key or
    another version (RFC 6455, section 4.2.2).
    """
    if method != b"GET":
        raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, [(b"allow", b"GET")])
    if len(b"GET  HTTP/1.1\r\n" + url) > _LINE_MAX_BYTES:
        raise RequestRefused(_URL_TOO_LONG)
    if any(len(name) + len(value) + 4 > _LINE_MAX_BYTES for name, value in headers):
        raise RequestRefused(_HEAD_TOO_LARGE)


# -- requests as the application sees them (ASGI)


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
