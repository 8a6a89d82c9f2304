"""Limits for each address, across all of its connections to this server, and shut-outs.

No I/O. An address is a single IPv4 address or an IPv6 /64, the network that a site receives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tickcast.wire.addresses import Networks, client_network

_ADDRESSES_MAX: Final = 10_000
# Parsing a frame takes about as long as parsing this many bytes.
_FRAME_BYTES: Final = 1024
_FLOODS_BURST: Final = 5
_FLOODS_PER_S: Final = 0.1
_REFUSALS_BURST: Final = 50
_REFUSALS_PER_S: Final = 1.0


class FrameLimit(NamedTuple):
    """How many frames a client may send; stored as `frame_limit` in uvicorn's configuration."""

    per_s: float
    burst: float


class TokenBucket:
    """A token bucket: allows `per_s` in the long run, and `burst` at once after a pause.

    Attributes:
        allowed: the amount available at the time of the last `consume`.
    """

    __slots__ = ("_at_s", "_burst", "_per_s", "allowed")

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._at_s: float | None = None
        self.allowed = burst

    def consume(self, cost: float, now_s: float) -> bool:
        """Take an amount if it is available; return whether it was.

        Args:
            now_s: time on a steady clock.
        """
        if self._at_s is not None:
            gained = max(0.0, now_s - self._at_s) * self._per_s
            self.allowed = min(self._burst, self.allowed + gained)
        self._at_s = now_s
        if cost > self.allowed:
            return False
        self.allowed -= cost
        return True

    def owe(self, cost: float) -> None:
        """Charge for past use; the balance may become negative, down to `-burst`."""
        self.allowed = max(-self._burst, self.allowed - cost)

    def refund(self, cost: float) -> None:
        """Undo a `consume` of this amount."""
        self.allowed = min(self._burst, self.allowed + cost)


class AddressLimiter:
    """The remaining allowance of one address. Create one with `AddressLimits.of`.

    Attributes:
        connections: how many HTTP connections it has open.
    """

    __slots__ = (
        "_bytes", "_floods", "_network", "_refusals", "_requests", "_shut_out_until_s",
        "connections", "limits",
    )  # fmt: skip

    def __init__(self, network: str, limits: AddressLimits) -> None:
        self._network = network
        self.limits = limits
        self.connections = 0
        self._shut_out_until_s = 0.0
        self._bytes: TokenBucket | None = None
        self._requests: TokenBucket | None = None
        self._floods: TokenBucket | None = None
        self._refusals: TokenBucket | None = None

    def spend_bytes(self, size: int, frames: int, now_s: float) -> bool:
        """Take WebSocket traffic from the allowance. Returns False if it is exhausted."""
        if self._bytes is None:
            per_s = self.limits.bytes_per_s
            self._bytes = TokenBucket(per_s, 8 * per_s)
        return self._bytes.consume(size + _FRAME_BYTES * frames, now_s)

    def spend_request(self, now_s: float) -> int:
        """Take one HTTP request. Returns 0 if it is allowed, else the seconds to wait."""
        if self._requests is None:
            self._requests = TokenBucket(self.limits.requests_per_s, self.limits.requests_burst)
        if self._requests.consume(1, now_s):
            return 0
        self.note_refusal(now_s)
        return math.ceil(1 / self.limits.requests_per_s)

    def note_flood(self, now_s: float) -> None:
        """Note that a connection was closed for flooding. Several of these shut the address out."""
        if self._floods is None:
            self._floods = TokenBucket(_FLOODS_PER_S, _FLOODS_BURST)
        if not self._floods.consume(1, now_s):
            self._shut_out(now_s)

    def note_refusal(self, now_s: float) -> None:
        """Note a refusal with `Retry-After`. An address that keeps ignoring it is shut out."""
        if self._refusals is None:
            self._refusals = TokenBucket(_REFUSALS_PER_S, _REFUSALS_BURST)
        if not self._refusals.consume(1, now_s):
            self._shut_out(now_s)

    def shut_out_s(self, now_s: float) -> int:
        """How many seconds the address remains shut out; 0 if it is not shut out."""
        return max(0, math.ceil(self._shut_out_until_s - now_s))

    def _shut_out(self, now_s: float) -> None:
        if self.limits.shut_out_s and now_s >= self._shut_out_until_s:
            self._shut_out_until_s = now_s + self.limits.shut_out_s
            self.limits.on_shut_out(self._network)


class AddressLimits:
    """The limiters of all addresses that have been active recently.

    Args:
        unlimited: networks that are exempt from all limits.
        proxies: networks of proxies. A proxy forwards other clients' traffic, so its own
            connections have no limits. The client's address is known once a request has been read.

    Attributes:
        bytes_per_s: sustained WebSocket traffic that an address may send; bursts may be eight
            times as large.
        requests_per_s, requests_burst: the rate of HTTP requests that an address may send.
        connections_max: how many connections it may have, for HTTP and for WebSockets each.
        shut_out_s: how long an address that keeps flooding is shut out, in seconds.
    """

    def __init__(
        self,
        unlimited: Sequence[str] = (),
        proxies: Sequence[str] = (),
        *,
        bytes_per_s: float = math.inf,
        requests_per_s: float = math.inf,
        requests_burst: int = 1,
        connections_max: int = 1_000_000,
        shut_out_s: float = 0.0,
    ) -> None:
        self._unlimited = Networks(unlimited)
        self._proxies = Networks(proxies)
        self.bytes_per_s = bytes_per_s
        self.requests_per_s = requests_per_s
        self.requests_burst = requests_burst
        self.connections_max = connections_max
        self.shut_out_s = shut_out_s
        self.on_shut_out: Callable[[str], None] = lambda network: None
        self._limiters: dict[str, AddressLimiter] = {}

    def __len__(self) -> int:
        return len(self._limiters)

    def of_peer(self, address: str) -> AddressLimiter | None:
        """The limiter of a connection's peer; None for a proxy."""
        return None if address in self._proxies else self.of(address)

    def of(self, address: str) -> AddressLimiter | None:
        """The limiter of an address; None if the address is not limited."""
        if address in self._unlimited:
            return None
        network = client_network(address)
        # Reinserting it at the end keeps the longest idle limiter first, ready to be evicted.
        limiter = self._limiters.pop(network, None) or AddressLimiter(network, self)
        if len(self._limiters) >= _ADDRESSES_MAX:
            del self._limiters[next(iter(self._limiters))]
        self._limiters[network] = limiter
        return limiter
