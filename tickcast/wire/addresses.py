"""Parse and match client addresses, host names and page origins. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?", re.ASCII)
_PORTS: Final = {"http": 80, "https": 443}
# A host name in the ASCII form that browsers send, or an IP address without brackets.
_ORIGIN_HOST: Final = re.compile(r"[a-z0-9_-][a-z0-9._-]*|[0-9a-f:.]+", re.ASCII)
# The scheme of the origin of a page that the server itself serves, by the scheme of the handshake.
_ORIGIN_SCHEMES: Final = {"ws": "http", "wss": "https", "http": "http", "https": "https"}


def is_network(text: str) -> bool:
    """Whether the text is an address, or a network in CIDR notation."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


class Networks:
    """A set of networks. `address in networks` tests whether any of them contains the address."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [
            ip_network(text, strict=False) for text in texts
        ]

    def __contains__(self, address: str) -> bool:
        parsed = _parse_address(address)
        return parsed is not None and any(parsed in network for network in self._networks)


def _parse_address(address: str) -> IPv4Address | IPv6Address | None:
    """Return an address, an IPv4-mapped one as IPv4; None if the text is not an address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        return parsed.ipv4_mapped
    return parsed


def client_network(address: str) -> str:
    """The unit that limits apply to: an IPv4 address, or the /64 around an IPv6 address."""
    parsed = _parse_address(address)
    if parsed is None:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        return str(ip_network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


def is_host_pattern(text: str) -> bool:
    """Whether the text is a host name, a host name after `*.`, or `*`."""
    return text == "*" or _HOST_NAME.fullmatch(text.removeprefix("*.")) is not None


def is_allowed_host(host: str, names: Iterable[str]) -> bool:
    """Whether a Host header names this server.

    This protects against DNS rebinding: an attacker's page resolves its own host name to this
    machine, and then reaches the server under that name. IP addresses, `localhost` and names
    without a dot can't be rebound, so they are always accepted.

    Args:
        host: the header's value, with or without a port.
        names: host patterns, as `is_host_pattern` accepts them.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if "." not in name or name.endswith(".localhost") or is_network(name):
        return True
    return any(_matches_name(pattern.lower(), name) for pattern in names)


def _matches_name(pattern: str, name: str) -> bool:
    if pattern.startswith("*"):
        return name.endswith(pattern[1:])
    return name == pattern.rstrip(".")


def is_loopback(host: str) -> bool:
    """Whether the host of a URL is this machine: `localhost` or a loopback address.

    The unspecified addresses count too, because connecting to them reaches this machine.
    """
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    parsed = _parse_address(name)
    return parsed is not None and (parsed.is_loopback or parsed.is_unspecified)


def is_local(host: str) -> bool:
    """Whether an address to listen on, or of a client, belongs to this machine alone.

    Unlike with `is_loopback`, the unspecified addresses don't: a server that listens on them can be
    reached from elsewhere.
    """
    parsed = _parse_address(host)
    return host == "localhost" or (parsed is not None and parsed.is_loopback)


def is_origin_pattern(text: str) -> bool:
    """Whether the text is an origin as browsers send it (RFC 6454, section 6.2).

    `https://*.example.org` matches all subdomains. A wildcard directly below a top-level domain is
    not accepted, because it would let almost everyone in.
    """
    scheme, separator, rest = text.partition("://*.")
    if separator:
        parsed = _parse_origin(f"{scheme}://{rest}")
        return (
            parsed is not None and "." in parsed[1].strip(".") and _parse_address(parsed[1]) is None
        )
    return _parse_origin(text) is not None


def is_allowed_origin(origin: str | None, scheme: str, host: str, allowed: Iterable[str]) -> bool:
    """Whether a page of this origin may connect.

    Clients other than browsers send no origin. They may connect.

    Args:
        scheme, host: the server's own address as the handshake used it: `ws` or `wss`, and the
            Host header.
        allowed: origin patterns to accept in addition to the server's own origin.
    """
    if origin is None:
        return True
    # A page with an opaque origin sends `null`, which does not parse (RFC 6454, section 6.2).
    parsed = _parse_origin(origin)
    if parsed is None:
        return False
    own = _parse_origin(f"{_ORIGIN_SCHEMES.get(scheme, 'http')}://{host}")
    return parsed == own or any(_matches_origin(parsed, each) for each in allowed)


def _matches_origin(origin: tuple[str, str, int], pattern: str) -> bool:
    """Whether an origin matches a pattern, in which `*.` matches any subdomain."""
    scheme, separator, rest = pattern.partition("://*.")
    if not separator:
        return origin == _parse_origin(pattern)
    domain = _parse_origin(f"{scheme}://{rest}")
    if domain is None:
        return False
    return origin[::2] == domain[::2] and _matches_name(f"*.{domain[1]}", origin[1])


def _parse_origin(text: str) -> tuple[str, str, int] | None:
    """Split an origin into scheme, host and port. Returns None if the text is not an origin."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    bare = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    host = parts.hostname
    if parts.scheme not in _PORTS or not host or not _ORIGIN_HOST.fullmatch(host) or not bare:
        return None
    return parts.scheme, host, _PORTS[parts.scheme] if port is None else port
