"""Proxies from environment variables (`https_proxy`, `all_proxy`, …) for client programs."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from tickcast.addresses import is_loopback

NO_SOCKS: Final = (
    "a SOCKS proxy takes another package: pip install 'python-socks[asyncio]',"
    " or name the host in the variable no_proxy"
)


def proxy_of(url: str) -> str | None:
    """Return the proxy's URL for a ws:// or wss:// URL; None to connect directly.

    A proxy elsewhere can't reach this machine's loopback addresses. Those are always connected to
    directly, even if `no_proxy` does not list them.

    Raises:
        websockets.exceptions.InvalidURI: it is not a ws:// or wss:// URL.
    """
    uri = parse_uri(url)
    return None if is_loopback(uri.host) else get_proxy(uri)


def through(proxy: str | None) -> str:
    """Describe the proxy in use for a message, without its credentials; empty if there is none.

    >>> through("http://user:secret@proxy.example:3128")
    ' (through the proxy http://proxy.example:3128)'
    """
    if proxy is None:
        return ""
    parts = urlsplit(proxy)
    return f" (through the proxy {parts.scheme}://{parts.netloc.rpartition('@')[2]})"
