"""One WebSocket connection: open it, read frames, match replies to requests and queue ticks."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.proxy import get_proxy
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from tickcast.client.messages import Event, Notice, Refused
from tickcast.client.state import Message
from tickcast.wire.addresses import is_loopback
from tickcast.wire.errors import ConnectionFailed, InvalidSettings
from tickcast.wire.ticks import Tick

FRAME_MAX_BYTES: Final = 16 * 1024 * 1024
_OPEN_TIMEOUT_S: Final = 5.0
_CLOSE_TIMEOUT_S: Final = 2.0
REPLY_TIMEOUT_S: Final = 10.0
# How long a server may be silent before it is pinged, and how long it may take to answer.
_SILENCE_S: Final = 5.0
# Above this, the client stops reading, and the server sees a slow client.
QUEUE_TICKS_MAX: Final = 10_000
# Factor on that limit while a request is pending, because its reply follows the queued ticks. The
# higher limit is more than sockets and servers hold. A program that keeps sending requests and
# reads no ticks reaches it, and then receives no replies.
_PENDING_FACTOR: Final = 20

# OpenSSL's codes (x509_vfy.h) for certificates or chains without a trusted issuer.
_UNKNOWN_ISSUERS: Final = frozenset((2, 18, 19, 20, 21))
# Advice for the HTTP statuses of refused handshakes.
_STATUS_HINTS: Final = {
    401: "; the token or key is not valid",
    404: "; a feed is at /stream or /v2/FEED",
}
SOCKS_HINT: Final = (
    "a SOCKS proxy takes another package: pip install 'python-socks[asyncio]',"
    " or name the host in the variable no_proxy"
)


# -- opening


class ServerAddress(NamedTuple):
    """Where to connect, and the credentials to present."""

    url: str
    # Extra headers for the handshake, such as credentials.
    headers: Mapping[str, str]
    # Verifies the server; set if and only if the URL is wss://.
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(
        cls,
        url: str,
        token: str | None,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | str | os.PathLike[str] | None,
    ) -> ServerAddress:
        """Build an address from the arguments of `tickcast.connect`; raises InvalidSettings."""
        if not url.startswith("wss://"):
            tls = None
        elif not isinstance(tls, ssl.SSLContext):
            tls = verifying_context(tls)
        credentials = {} if token is None else {"Authorization": f"Bearer {token}"}
        return cls(url, {**headers, **credentials}, tls)


async def open_connection(address: ServerAddress, subprotocol: str) -> ClientConnection:
    """Connect once.

    Raises:
        ConnectionFailed: the server does not answer or refused the handshake (see `refusal_of`).
    """
    url, target = address.url, address.url
    try:
        proxy = proxy_for(url)
        target += describe_proxy(proxy)
        return await connect(
            url,
            proxy=proxy,
            subprotocols=[Subprotocol(subprotocol)],
            additional_headers=address.headers,
            ssl=address.tls,
            compression=None,
            max_size=FRAME_MAX_BYTES,
            user_agent_header="tickcast",
            open_timeout=_OPEN_TIMEOUT_S,
            # `receive_frame` pings instead. While a slow program reads no ticks, nothing is read,
            # not even pongs, so this keepalive would close a healthy connection.
            ping_interval=None,
            close_timeout=_CLOSE_TIMEOUT_S,
        )
    except ssl.SSLError as error:
        raise ConnectionFailed(f"{target}: {describe_tls_error(error)}") from error
    except InvalidStatus as error:
        hint = _STATUS_HINTS.get(error.response.status_code, "")
        raise ConnectionFailed(f"{target}: {error}{hint}") from error
    except ConnectionRefusedError as error:
        reason = "no server listens there" if target == url else "the proxy does not answer"
        raise ConnectionFailed(f"{target}: {reason}") from error
    except ImportError as error:  # `websockets` imports `python_socks` only for such a proxy.
        raise ConnectionFailed(f"{target}: {SOCKS_HINT}") from error
    except (OSError, TimeoutError, WebSocketException, ValueError) as error:
        raise ConnectionFailed(f"{target}: {error}") from error


def refusal_of(error: BaseException) -> tuple[int | None, float]:
    """Return the HTTP status and the `Retry-After` seconds of a refused handshake."""
    cause = error.__cause__
    if not isinstance(cause, InvalidStatus):
        return None, 0.0
    retry_after = cause.response.headers.get("Retry-After", "")
    # The header may also be a date (RFC 9110, section 10.2.3), which Tickcast never sends.
    return cause.response.status_code, float(retry_after) if retry_after.isdecimal() else 0.0


def proxy_for(url: str) -> str | None:
    """Return the proxy's URL for a ws:// or wss:// URL; None to connect directly.

    The proxy comes from environment variables (`https_proxy`, `all_proxy`, …). A proxy elsewhere
    can't reach this machine's loopback addresses. Those are always connected to directly, even if
    `no_proxy` does not list them.

    Raises:
        websockets.exceptions.InvalidURI: it is not a ws:// or wss:// URL.
    """
    uri = parse_uri(url)
    return None if is_loopback(uri.host) else get_proxy(uri)


def describe_proxy(proxy: str | None) -> str:
    """Describe the proxy in use for a message, without its credentials; empty if there is none.

    >>> describe_proxy("http://user:secret@proxy.example:3128")
    ' (through the proxy http://proxy.example:3128)'
    """
    if proxy is None:
        return ""
    parts = urlsplit(proxy)
    return f" (through the proxy {parts.scheme}://{parts.netloc.rpartition('@')[2]})"


def verifying_context(ca: str | os.PathLike[str] | None = None) -> ssl.SSLContext:
    """Create a context that trusts the system's authorities, or the certificates in a file.

    Verification can't be turned off.

    Args:
        ca: PEM file of certificates to trust: an authority's or a self-signed server's.

    Raises:
        InvalidSettings: the file can't be used.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise InvalidSettings(f"{ca} holds no certificate in PEM form") from None
    except OSError as error:
        raise InvalidSettings(f"{ca}: {error.strerror}") from None


def describe_tls_error(error: ssl.SSLError) -> str:
    """Describe what went wrong and, where known, how to fix it."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    text = f"the server's certificate is not trusted: {error.verify_message}"
    if error.verify_code in _UNKNOWN_ISSUERS:
        text += "; to trust it or its CA, name the file with --ca (in a program: tls=)"
    return text


# -- reading


async def receive_frame(socket: ClientConnection) -> str | bytes:
    """Return the next message, pinging a silent server: it may be dead rather than quiet."""
    pong: asyncio.Future[float] | None = None
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                return await socket.recv()
        except TimeoutError:
            if pong is None or pong.done():
                pong = asyncio.ensure_future(await socket.ping())
                pong.add_done_callback(_ignore_error)
            else:
                # Not `close`, which would wait for an answer from a dead server.
                socket.transport.abort()
                pong = None


def _ignore_error(pong: asyncio.Future[float]) -> None:
    """Retrieve the exception of an unanswered ping, which `recv` reports anyway."""
    if not pong.cancelled():
        pong.exception()


def describe_close(closed: ConnectionClosed) -> str:
    """Describe how a connection ended."""
    if closed.rcvd is None:
        return "the connection was lost"
    return f"closed with {closed.rcvd.code} {closed.rcvd.reason}"


class TickQueue:
    """A bounded queue of ticks and events, in order.

    A task that is cancelled while waiting takes nothing from the queue.

    Args:
        reply_pending: returns whether to read on above the limit, up to the higher one.
    """

    def __init__(self, reply_pending: Callable[[], bool]) -> None:
        # Why the queue has ended, or None.
        self.ended: Exception | None = None
        self._reply_pending = reply_pending
        self._items: deque[Tick | Event] = deque()
        self._not_empty = asyncio.Event()
        self._not_full = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Whether reading must stop until the program takes something."""
        bound = QUEUE_TICKS_MAX * (_PENDING_FACTOR if self._reply_pending() else 1)
        return len(self._items) > bound

    async def put(self, items: Iterable[Tick | Event]) -> None:
        """Add what has arrived, and wait until there is room for more."""
        # May exceed the bound by one frame, because dropping a part of it would be a loss.
        self._items.extend(items)
        self._not_empty.set()
        while self.is_full:
            self._not_full.clear()
            await self._not_full.wait()

    def recheck(self) -> None:
        """Check again whether there is room, because a request is now pending."""
        self._not_full.set()

    async def get(self) -> Tick | Event:
        """Return the next item; raises the end reason after the last one."""
        await self._wait()  # Takes nothing itself, so a cancelled `get` loses nothing.
        item = self._items.popleft()
        self._resume_reading()
        return item

    async def get_ticks(self, max_ticks: int) -> list[Tick] | Event:
        """Return the ticks before the next event, 1 to `max_ticks`; or the event, if it is next.

        Raises the end reason after the last item.
        """
        await self._wait()
        ticks: list[Tick] = []
        while self._items and len(ticks) < max_ticks:
            item = self._items.popleft()
            if isinstance(item, Event):
                if not ticks:
                    return item
                self._items.appendleft(item)
                break
            ticks.append(item)
        self._resume_reading()
        return ticks

    def clear(self) -> None:
        """Drop all queued items."""
        self._items.clear()
        self._not_full.set()

    def end(self, reason: Exception) -> None:
        """End the queue; the first reason given is kept."""
        self.ended = self.ended or reason
        self._not_empty.set()

    async def _wait(self) -> None:
        while not self._items:
            if self.ended is not None:
                raise self.ended
            self._not_empty.clear()
            await self._not_empty.wait()

    def _resume_reading(self) -> None:
        # Only at half the limit, so that reading does not stop and resume with each tick.
        if len(self._items) <= QUEUE_TICKS_MAX // 2:
            self._not_full.set()


class PendingRequests:
    """Requests that wait for replies, and the queue of received ticks and events."""

    def __init__(self) -> None:
        self._replies: dict[int, asyncio.Future[Notice]] = {}
        # A reply follows the ticks sent before it, so keep reading while a request is pending.
        self.queue = TickQueue(reply_pending=lambda: bool(self._replies))

    async def request(self, socket: ClientConnection, message: Message) -> Notice:
        """Send a request and wait for its reply, which another task must pass to `resolve`.

        Raises:
            Refused: the server replied with an error.
            ConnectionFailed: the server did not reply.
        """
        if self.queue.ended:
            raise ConnectionFailed("the stream has ended") from self.queue.ended
        reply = self._replies[message.id] = asyncio.get_running_loop().create_future()
        try:
            await socket.send(message.frame)
            self.queue.recheck()
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                notice: Notice = await reply
        except ConnectionClosed:
            raise ConnectionFailed("the connection was lost") from None
        except TimeoutError:
            behind = f", or does so behind {len(self.queue)} ticks" if self.queue.is_full else ""
            raise ConnectionFailed(f"the server does not answer{behind}") from None
        finally:
            self._replies.pop(message.id, None)
        if notice["T"] == "error":
            raise Refused(notice)
        return notice

    def resolve(self, notice: Notice) -> bool:
        """Deliver a reply to the request with its `id`; return whether one was waiting."""
        reply = self._replies.get(notice.get("id", 0))
        if reply is None or reply.done():
            return False
        reply.set_result(notice)
        return True

    def fail(self, error: ConnectionFailed) -> None:
        """Fail all pending requests with an error."""
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error)

    def end(self, reason: Exception) -> None:
        """Fail pending requests and end the queue; the first reason given is kept."""
        ended = ConnectionFailed("the stream has ended")
        self.fail(reason if isinstance(reason, ConnectionFailed) else ended)
        self.queue.end(reason)
