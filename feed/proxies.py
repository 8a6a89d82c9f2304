"""Proxies that the environment names (`https_proxy`, `all_proxy`, …), for programs that connect."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from feed.addresses import is_loopback

NO_SOCKS: Final = (
    "a SOCKS proxy takes another package: pip install 'python-socks[asyncio]',"
    " or name the host in the variable no_proxy"
)


def proxy_of(url: str) -> str | None:
    """The URL of the proxy for a ws:// or wss:// URL; None to connect directly.

    A proxy is somewhere else, so it can't reach what listens on the loopback address here. Such
    hosts are connected to directly, also where `no_proxy` does not name them.

    Raises:
        websockets.exceptions.InvalidURI: it is no such URL.
    """
    uri = parse_uri(url)
    return None if is_loopback(uri.host) else get_proxy(uri)


def through(proxy: str | None) -> str:
    """Words for messages: which proxy was used, if any, without its credentials.

    >>> through("http://user:secret@proxy.example:3128")
    ' (through the proxy http://proxy.example:3128)'
    """
    if proxy is None:
        return ""
    parts = urlsplit(proxy)
    return f" (through the proxy {parts.scheme}://{parts.netloc.rpartition('@')[2]})"
