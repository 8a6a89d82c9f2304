"""What each address may use, over all its connections to this server, and which are shut out.

No I/O. An address is one of IPv4, or the /64 of IPv6 that a site is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from feed.addresses import Networks, party_of
from feed.rates import TokenBucket

_ADDRESSES_MAX: Final = 10_000
_FRAME_BYTES: Final = 1024
"""A frame takes the parser about as long as this many bytes."""
_FLOODS_BURST: Final = 5
_FLOODS_PER_S: Final = 0.1
_REFUSALS_BURST: Final = 50
_REFUSALS_PER_S: Final = 1.0


class AddressLimiter:
    """What one address has left. Create one with `AddressLimits.of`.

    Attributes:
        connections: how many connections it has that speak HTTP.
    """

    __slots__ = (
        "_bytes",
        "_floods",
        "_party",
        "_refusals",
        "_requests",
        "_shut_out_until_s",
        "connections",
        "limits",
    )  # fmt: skip

    def __init__(self, party: str, limits: AddressLimits) -> None:
        self._party = party
        self.limits = limits
        self.connections = 0
        self._shut_out_until_s = 0.0
        self._bytes: TokenBucket | None = None
        self._requests: TokenBucket | None = None
        self._floods: TokenBucket | None = None
        self._refusals: TokenBucket | None = None

    def take_bytes(self, size: int, frames: int, now_s: float) -> bool:
        """Whether it may send that much more through WebSockets; if so it is taken."""
        if self._bytes is None:
            per_s = self.limits.bytes_per_s
            self._bytes = TokenBucket(per_s, 8 * per_s)
        return self._bytes.take(size + _FRAME_BYTES * frames, now_s)

    def take_request(self, now_s: float) -> int:
        """Take one HTTP request: 0 if it is allowed, else after how many seconds to come back."""
        if self._requests is None:
            self._requests = TokenBucket(self.limits.requests_per_s, self.limits.requests_burst)
        if self._requests.take(1, now_s):
            return 0
        self.note_refusal(now_s)
        return math.ceil(1 / self.limits.requests_per_s)

    def note_flood(self, now_s: float) -> None:
        """Note that a connection was closed for sending too much; too many shut the address out."""
        if self._floods is None:
            self._floods = TokenBucket(_FLOODS_PER_S, _FLOODS_BURST)
        if not self._floods.take(1, now_s):
            self._shut_out(now_s)

    def note_refusal(self, now_s: float) -> None:
        """Note a refusal with `Retry-After`; an address that does not wait is shut out."""
        if self._refusals is None:
            self._refusals = TokenBucket(_REFUSALS_PER_S, _REFUSALS_BURST)
        if not self._refusals.take(1, now_s):
            self._shut_out(now_s)

    def shut_out_s(self, now_s: float) -> int:
        """For how many seconds it is still shut out; 0 if it is not."""
        return max(0, math.ceil(self._shut_out_until_s - now_s))

    def _shut_out(self, now_s: float) -> None:
        if self.limits.shut_out_s and now_s >= self._shut_out_until_s:
            self._shut_out_until_s = now_s + self.limits.shut_out_s
            self.limits.on_shut_out(self._party)


class AddressLimits:
    """The limits of all addresses, as far as they have been active lately.

    Args:
        unlimited: networks to which no limit of an address applies.
        proxies: networks of proxies. What they pass on is somebody else's, so their connections as
            such have no limits. Those of their clients are known once a request was read.

    Attributes:
        bytes_per_s: what an address may send through WebSockets in the long run; eight times as
            much at once.
        requests_per_s, requests_burst: how many HTTP requests it may send.
        connections_max: connections that it may have, HTTP and WebSockets each.
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
        self.on_shut_out: Callable[[str], None] = lambda party: None
        self._limiters: dict[str, AddressLimiter] = {}

    def __len__(self) -> int:
        return len(self._limiters)

    def of_peer(self, address: str) -> AddressLimiter | None:
        """The limiter of a connection's peer; None for a proxy."""
        return None if address in self._proxies else self.of(address)

    def of(self, address: str) -> AddressLimiter | None:
        """The limiter of an address; None where it is not limited."""
        if address in self._unlimited:
            return None
        party = party_of(address)
        # Moved to the end, so that the first is the one that was idle for longest.
        limiter = self._limiters.pop(party, None) or AddressLimiter(party, self)
        if len(self._limiters) >= _ADDRESSES_MAX:
            del self._limiters[next(iter(self._limiters))]
        self._limiters[party] = limiter
        return limiter
