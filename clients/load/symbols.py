"""Request a server's symbols over HTTP."""

from __future__ import annotations

import http.client
import re
import ssl
from typing import Final

import msgspec
from msgspec import Struct, field

from clients.load.plan import Plan
from clients.load.wire import parse_url
from tickcast.client.connection import describe_tls_error, verifying_context
from tickcast.wire.errors import ConnectionFailed, TickcastError

_TIMEOUT_S: Final = 10.0
_UNAUTHORIZED: Final = 401
_BODY_MAX_BYTES: Final = 64 * 1024 * 1024


class _Entry(Struct):
    symbol: str = field(name="S")
    channels: list[str] = field(default_factory=list)


def feed_of(url: str) -> str | None:
    """Return the feed in a stream's URL, as in `/v2/NAME`; None if it has none."""
    match = re.fullmatch(r"/v2/([a-z0-9_-]{1,32})", parse_url(url).target.partition("?")[0])
    return match[1] if match else None


def ask_symbols(plan: Plan) -> list[str]:
    """Return the sorted symbols that the server has in any of the plan's channels. Blocks.

    Raises:
        ConnectionFailed: the server did not answer, or its answer is invalid.
    """
    address = parse_url(plan.url)
    feed = feed_of(plan.url)
    connection = (
        http.client.HTTPSConnection(
            address.host,
            address.port,
            timeout=_TIMEOUT_S,
            context=verifying_context(plan.ca_file),
        )
        if address.secure
        else http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_S)
    )
    path = "/symbols" + (f"?feed={feed}" if feed else "")
    where = f"{'https' if address.secure else 'http'}://{address.authority}{path}"
    try:
        connection.request("GET", path, headers={**_credentials(plan), **dict(plan.headers)})
        reply = connection.getresponse()
        body = reply.read(_BODY_MAX_BYTES)
    except ssl.SSLError as error:
        raise ConnectionFailed(f"{where}: {describe_tls_error(error)}") from None
    except ConnectionRefusedError:
        raise ConnectionFailed(f"{plan.url}: no server listens there") from None
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionFailed(f"{where}: {error}") from None
    finally:
        connection.close()
    hint = "name the symbols with --symbols, or '*'"
    if reply.status == _UNAUTHORIZED:
        hint = "the token or key is not valid" if plan.auth else "log in with --token-file FILE"
    if reply.status != 200:
        raise ConnectionFailed(f"{where}: HTTP {reply.status}; {hint}")
    try:
        entries = msgspec.json.decode(body, type=list[_Entry])
    except msgspec.MsgspecError as error:
        raise ConnectionFailed(f"{where}: {error}; {hint}") from None
    found = sorted(each.symbol for each in entries if set(each.channels) & set(plan.channels))
    if not found:
        raise TickcastError(f"{where}: no symbols in {', '.join(plan.channels)}; {hint}")
    return found


def _credentials(plan: Plan) -> dict[str, str]:
    """Return headers with the credentials of the plan's connections."""
    if plan.auth is None:
        return {}
    if "token" in plan.auth:
        return {"Authorization": f"Bearer {plan.auth['token']}"}
    return {"APCA-API-KEY-ID": plan.auth["key"], "APCA-API-SECRET-KEY": plan.auth["secret"]}
