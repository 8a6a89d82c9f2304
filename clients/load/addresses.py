"""The URL of a server, and the symbols that it lists at `GET /symbols`."""

from __future__ import annotations

import http.client
import re
import ssl
from typing import Final

import msgspec
from msgspec import Struct, field
from websockets.exceptions import InvalidURI
from websockets.headers import build_host
from websockets.uri import WebSocketURI, parse_uri

from clients.load.plan import Plan
from tickcast.client.connection import describe_tls_error, verifying_context
from tickcast.wire.errors import ConnectionFailed, InvalidSettings, TickcastError

_TIMEOUT_S: Final = 10.0
_BODY_MAX_BYTES: Final = 64 * 1024 * 1024


class _ListedSymbol(Struct):
    symbol: str = field(name="S")
    channels: list[str] = field(default_factory=list)


def parse_url(url: str) -> WebSocketURI:
    """Parse the URL of a stream. Raises InvalidSettings."""
    if not url.startswith(("ws://", "wss://")):
        raise InvalidSettings(f"{url!a} does not begin with ws:// or wss://")
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise InvalidSettings(f"{url!a}: write characters other than plain ASCII as %XX")
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest)[0]
    if "@" in authority or "#" in rest:
        # Without the credentials, which must not end up in a log.
        host = authority.rpartition("@")[2]
        raise InvalidSettings(f"{scheme}://{host}: the URL must have neither user nor fragment")
    try:
        return parse_uri(url)
    except (InvalidURI, ValueError) as error:
        raise InvalidSettings(f"{url!a}: {error}") from None


def feed_of(url: str) -> str | None:
    """Return the feed in a stream's URL, as in `/v2/NAME`; None if it has none."""
    match = re.fullmatch(r"/v2/([a-z0-9_-]{1,32})", parse_url(url).path)
    return match[1] if match else None


def describe_error(error: OSError) -> str:
    """Describe why a connection could not be opened."""
    if isinstance(error, ssl.SSLError):
        return describe_tls_error(error)
    if isinstance(error, ConnectionRefusedError):
        return "no server listens there"
    return "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)


def fetch_symbols(plan: Plan) -> list[str]:
    """Return the sorted symbols that the server has in any of the plan's channels. Blocks.

    Raises ConnectionFailed.
    """
    uri, feed = parse_url(plan.url), feed_of(plan.url)
    path = "/symbols" + (f"?feed={feed}" if feed else "")
    where = f"http{'s' * uri.secure}://{build_host(uri.host, uri.port, uri.secure)}{path}"
    connection = http.client.HTTPConnection(uri.host, uri.port, timeout=_TIMEOUT_S)
    if uri.secure:
        context = verifying_context(plan.ca_file)
        connection = http.client.HTTPSConnection(
            uri.host, uri.port, timeout=_TIMEOUT_S, context=context
        )
    try:
        connection.request("GET", path, headers={**_credentials(plan), **dict(plan.headers)})
        reply = connection.getresponse()
        body = reply.read(_BODY_MAX_BYTES)
    except OSError as error:
        raise ConnectionFailed(f"{plan.url}: {describe_error(error)}") from None
    except http.client.HTTPException as error:
        raise ConnectionFailed(f"{where}: {error}") from None
    finally:
        connection.close()
    hint = "name the symbols with --symbols, or '*'"
    if reply.status == 401:
        hint = "the token or key is not valid" if plan.auth else "log in with --token-file FILE"
    if reply.status != 200:
        raise ConnectionFailed(f"{where}: HTTP {reply.status}; {hint}")
    try:
        listed = msgspec.json.decode(body, type=list[_ListedSymbol])
    except msgspec.MsgspecError as error:
        raise ConnectionFailed(f"{where}: {error}; {hint}") from None
    found = sorted(each.symbol for each in listed if set(each.channels) & set(plan.channels))
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
