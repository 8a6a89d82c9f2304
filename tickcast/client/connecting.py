"""Open one WebSocket connection, read from it and detect when it is dead."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from typing import Final, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from tickcast.client.proxies import NO_SOCKS, proxy_of, through
from tickcast.client.tls import verifying_context, why_refused
from tickcast.wire.errors import ConnectionFailed

FRAME_MAX_BYTES: Final = 16 * 1024 * 1024
_DIAL_TIMEOUT_S: Final = 5.0
_CLOSE_TIMEOUT_S: Final = 2.0
_SILENCE_S: Final = 5.0
"""How long a server may be silent before it is pinged, and how long it may take to answer."""
_HINTS: Final = {
    401: "; the token or key is not valid",
    404: "; a feed is at /stream or /v2/FEED",
}
"""Advice to the user for the HTTP statuses of refused handshakes."""


class ServerAddress(NamedTuple):
    """Where to connect, and the credentials to present.

    Attributes:
        headers: extra headers for the handshake, such as credentials.
        tls: verifies the server; set if and only if the URL is wss://.
    """

    url: str
    headers: Mapping[str, str]
    tls: ssl.SSLContext | None = None


def address_of(
    url: str,
    token: str | None,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | str | os.PathLike[str] | None,
) -> ServerAddress:
    """Build an address from the arguments of `clients.connect`; raises InvalidSettings like it."""
    if not url.startswith("wss://"):
        tls = None
    elif not isinstance(tls, ssl.SSLContext):
        tls = verifying_context(tls)
    shown = dict(headers)
    if token is not None:
        shown["Authorization"] = f"Bearer {token}"
    return ServerAddress(url, shown, tls)


async def dial(address: ServerAddress, subprotocol: str) -> ClientConnection:
    """Connect once.

    Raises:
        ConnectionFailed: the server does not answer or refused the handshake (see `refusal_in`).
    """
    url, where = address.url, address.url
    try:
        proxy = proxy_of(url)
        where += through(proxy)
        return await connect(
            url,
            proxy=proxy,
            subprotocols=[Subprotocol(subprotocol)],
            additional_headers=address.headers,
            ssl=address.tls,
            compression=None,
            max_size=FRAME_MAX_BYTES,
            user_agent_header="tickcast",
            open_timeout=_DIAL_TIMEOUT_S,
            ping_interval=None,
            close_timeout=_CLOSE_TIMEOUT_S,
        )
    except ssl.SSLError as error:
        raise ConnectionFailed(f"{where}: {why_refused(error)}") from error
    except InvalidStatus as error:
        hint = _HINTS.get(error.response.status_code, "")
        raise ConnectionFailed(f"{where}: {error}{hint}") from error
    except ConnectionRefusedError as error:
        what = "no server listens there" if where == url else "the proxy does not answer"
        raise ConnectionFailed(f"{where}: {what}") from error
    except ImportError as error:
        raise ConnectionFailed(f"{where}: {NO_SOCKS}") from error
    except (OSError, TimeoutError, WebSocketException, ValueError) as error:
        raise ConnectionFailed(f"{where}: {error}") from error


async def next_frame(socket: ClientConnection) -> str | bytes:
    """Return the next message, pinging a silent server: it may be dead rather than quiet.

    The keepalive of `websockets` won't do. While a slow program takes no ticks, nothing is read,
    not even pongs, so the keepalive would close a healthy connection.
    """
    pong: asyncio.Future[float] | None = None
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                return await socket.recv()
        except TimeoutError:
            if pong is None or pong.done():
                pong = asyncio.ensure_future(await socket.ping())
                pong.add_done_callback(_forget)
            else:
                socket.transport.abort()
                pong = None


def refusal_in(error: BaseException) -> tuple[int | None, float]:
    """Return the HTTP status and the `Retry-After` seconds of a refused handshake."""
    cause = error.__cause__
    if not isinstance(cause, InvalidStatus):
        return None, 0.0
    retry_after = cause.response.headers.get("Retry-After", "")
    return cause.response.status_code, float(retry_after) if retry_after.isdecimal() else 0.0


def words_of(cut: ConnectionClosed) -> str:
    """Describe how a connection ended."""
    return (
        f"closed with {cut.rcvd.code} {cut.rcvd.reason}"
        if cut.rcvd
        else "closed with 0 connection cut"
    )


def _forget(pong: asyncio.Future[float]) -> None:
    """Retrieve the exception of an unanswered ping, which `recv` reports anyway."""
    if not pong.cancelled():
        pong.exception()
