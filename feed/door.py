"""What a handshake must pass before it is answered, and what a connection holds while it lasts."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any, Final

from feed.access.credentials import Credentials, credentials_in
from feed.access.gate import Gate
from feed.access.grant import UNASKED, Grant
from feed.address_limits import AddressLimiter, AddressLimits
from feed.addresses import Networks, is_known_host, is_welcome, party_of
from feed.broker.attempts import Attempts
from feed.broker.seats import Seats
from feed.counters import Counters
from feed.errors import AuthFailed, Refused, TooManyConnections, TryAgain
from feed.logs import SECURITY
from feed.settings import Settings
from feed.slices import Steps, run_all

REFUSALS: Final = (
    "host", "origin", "attempts", "address", "full", "credentials", "key", "shut_out", "requests",
    "busy",
)  # fmt: skip
"""All reasons for which somebody is turned away."""
_TOTAL: Final = "total"
_FULL_RETRY_S: Final = 5
_BUSY_RETRY_S: Final = 1
_ENTERING_MAX: Final = 256
"""Handshakes and requests that wait for the store or for a check of credentials at a time. More
would wait for longer than it takes to come again."""
_ENTERING_RETRY_S: Final = (1, 3)
_ATTEMPTS_AT_ONCE: Final = 8
"""Attempts that are counted at a time. Each takes one of the store's 16 pooled connections, and
what serves the clients that are in needs the others."""
_HOST_SHOWN: Final = 100
_ORIGIN_SHOWN: Final = 120
_VISITORS_PER_STEP: Final = 50

security = logging.getLogger("tickcast.security")


def _nothing() -> None:
    pass


@dataclass(eq=False, slots=True)
class Visitor:
    """Somebody who has passed, until `Door.leave`.

    Attributes:
        number: counts the visitors of this server.
        address: where it comes from, in safe characters.
        grant: what it may do; None until it has said who it is.
        rooms: where it holds a seat.
        on_change: called when its grant may no longer be what it was.
        has_left: True from `Door.leave` on: it takes no seat any more.
    """

    number: int
    address: str
    grant: Grant | None = None
    rooms: dict[str, int] = field(default_factory=dict)
    on_change: Callable[[], None] = _nothing
    has_left: bool = False


class Door:
    """Lets visitors in and out.

    Args:
        is_up: whether the store is believed to answer.

    Attributes:
        defer: called with steps that nothing waits for.
    """

    def __init__(
        self,
        settings: Settings,
        gate: Gate,
        limits: AddressLimits,
        seats: Seats,
        attempts: Attempts,
        counters: Counters,
        is_up: Callable[[], bool],
    ) -> None:
        self.gate = gate
        self._settings = settings
        self._limits = limits
        self._limits.on_shut_out = self._note_shut_out
        self._seats = seats
        self._attempts = attempts
        self._counters = counters
        self._is_up = is_up
        self.defer: Callable[[Steps], None] = run_all
        self._visitors: set[Visitor] = set()
        self._numbers = count(1)
        self._unlimited = Networks(settings.unlimited_addresses)
        self._entering = 0
        self._noting = asyncio.Semaphore(_ATTEMPTS_AT_ONCE)

    def check_host(self, scope: Mapping[str, Any]) -> None:
        """See that a request reached the server by a name that it is known by.

        A server that asks for credentials gives nothing to a page under another name, so there only
        the setting `hosts` makes it look.

        Raises:
            Refused: it did not.
        """
        names = self._settings.hosts
        if self.gate.asks and not names:
            return
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if is_known_host(host.decode("latin-1"), (*names, *self._settings.host)):
            return
        shown = ascii(host.decode("latin-1")[:_HOST_SHOWN])
        refusal = Refused(
            "host",
            403,
            f"the server is not known by the name {shown}; the setting hosts adds names",
        )
        self.note_refusal(refusal.reason, Visitor(0, _safe(_address_in(scope))), str(refusal))
        raise refusal

    async def enter(self, scope: Mapping[str, Any]) -> Visitor:
        """Let the sender of a handshake in.

        Args:
            scope: its ASGI connection scope.

        Raises:
            Refused: it may not come in, or not now.
        """
        address = _address_in(scope)
        visitor = Visitor(next(self._numbers), _safe(address))
        try:
            self._check_origin(scope)
            with self._one_more():
                await self._take_place(visitor, address)
                await self._check_credentials(visitor, scope)
        except Refused as refusal:
            self.leave(visitor)
            self.note_refusal(refusal.reason, visitor, str(refusal))
            raise
        except BaseException:
            self.leave(visitor)
            raise
        self._visitors.add(visitor)
        return visitor

    def limiter_of(self, scope: Mapping[str, Any]) -> AddressLimiter | None:
        """What limits the address that a scope names; None where nothing does."""
        return self._limits.of(_address_in(scope))

    async def look_in(self, scope: Mapping[str, Any]) -> Grant:
        """What the sender of a plain HTTP request may see. It holds no seat, but it is an attempt.

        Raises:
            Refused: it may see nothing, or not now.
        """
        if not self.gate.asks:
            return UNASKED
        address = _address_in(scope)
        try:
            with self._one_more():
                await self._note_attempt(address)
                credentials = credentials_in(scope["headers"])
                if credentials is None:
                    raise AuthFailed("credentials are needed")
                return await self.gate.admit(credentials, party_of(address))
        except AuthFailed as error:
            refusal = Refused("credentials", 401, str(error))
        except TryAgain as error:
            refusal = Refused("busy", 503, str(error), _BUSY_RETRY_S)
        except Refused as error:
            refusal = error
        self.note_refusal(refusal.reason, Visitor(0, _safe(address)), str(refusal))
        raise refusal

    async def identify(self, visitor: Visitor, credentials: Credentials) -> Grant:
        """Find out what a visitor may do who shows credentials.

        Raises:
            AuthFailed: nothing.
            TryAgain, TooManyConnections: nothing now.
        """
        grant = await self.gate.admit(credentials, party_of(visitor.address))
        needs_seat = visitor.grant is None and not visitor.has_left
        if needs_seat and grant.max_connections is not None:
            room = f"{grant.proof.value}:{grant.subject}"
            await self._take(visitor, {room: grant.max_connections})
        return grant

    def leave(self, visitor: Visitor) -> None:
        """Let a visitor out."""
        visitor.has_left = True
        self._visitors.discard(visitor)
        self._seats.free(visitor.rooms)
        visitor.rooms = {}
        visitor.on_change = _nothing

    def note_refusal(self, reason: str, visitor: Visitor, detail: str) -> None:
        """Count and log that somebody was turned away."""
        self._counters.refused[reason] += 1
        extra = {"client": visitor.number, "address": visitor.address, "detail": detail}
        security.log(SECURITY, "refused: %s", reason, extra=extra)

    async def watch(self) -> None:
        """Look after those who are in, whenever what they may do has changed."""
        await self.gate.watch(self._look_at_all)

    def _look_at_all(self) -> None:
        self.defer(self._look_at_each())

    def _look_at_each(self) -> Steps:
        for place, visitor in enumerate(list(self._visitors), 1):
            if not visitor.has_left:
                visitor.on_change()
            if not place % _VISITORS_PER_STEP:
                yield

    def _check_origin(self, scope: Mapping[str, Any]) -> None:
        headers = dict(scope["headers"])
        given = headers.get(b"origin")
        origin = None if given is None else given.decode("latin-1")
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_welcome(origin, scope["scheme"], host, self._settings.origins):
            # Escaped, since the text goes to the log as well.
            shown = ascii((origin or "")[:_ORIGIN_SHOWN])
            raise Refused(
                "origin",
                403,
                f"pages of {shown} may not connect; the setting origins would allow it",
            )

    async def _take_place(self, visitor: Visitor, address: str) -> None:
        rooms = {_TOTAL: self._settings.connections_max}
        self._check_shut_out(address)
        await self._note_attempt(address)
        if address not in self._unlimited:
            rooms[f"address:{party_of(address)}"] = self._settings.connections_per_address_max
        try:
            await self._take(visitor, rooms)
        except TooManyConnections as error:
            if error.room == _TOTAL:
                raise Refused("full", 503, "the server is full", _FULL_RETRY_S) from None
            raise Refused(
                "address", 429, "too many connections from this address", _FULL_RETRY_S
            ) from None

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        """Count one that waits to be let in.

        Raises:
            Refused: there are too many already.
        """
        if self._entering >= _ENTERING_MAX:
            retry_s = random.randint(*_ENTERING_RETRY_S)
            raise Refused("busy", 503, "too many are connecting at once", retry_s)
        self._entering += 1
        try:
            yield
        finally:
            self._entering -= 1

    def _check_shut_out(self, address: str) -> None:
        """Refuse an address that keeps flooding, before anything is done for it."""
        limiter = self._limits.of(address)
        wait_s = limiter.shut_out_s(monotonic()) if limiter is not None else 0
        if wait_s:
            raise Refused("shut_out", 429, "this address has sent too much", wait_s)

    def _note_shut_out(self, party: str) -> None:
        extra = {"address": party, "duration_s": self._settings.shut_out_s}
        security.log(SECURITY, "shut out: it keeps flooding", extra=extra)

    async def _note_attempt(self, address: str) -> None:
        if address in self._unlimited:
            return
        async with self._noting:
            wait_s = await self._attempts.note(party_of(address), shared=self._is_up())
        if wait_s:
            if (limiter := self._limits.of(address)) is not None:
                limiter.note_refusal(monotonic())
            raise Refused("attempts", 429, "too many attempts from this address", wait_s)

    async def _check_credentials(self, visitor: Visitor, scope: Mapping[str, Any]) -> None:
        if not self.gate.asks:
            visitor.grant = UNASKED
            return
        try:
            credentials = credentials_in(scope["headers"])
            if credentials is not None:
                visitor.grant = await self.identify(visitor, credentials)
        except AuthFailed as error:
            raise Refused("credentials", 401, str(error)) from None
        except TryAgain as error:
            raise Refused("busy", 503, str(error), _BUSY_RETRY_S) from None
        except TooManyConnections:
            raise Refused("key", 429, "too many connections with this key", _FULL_RETRY_S) from None

    async def _take(self, visitor: Visitor, rooms: Mapping[str, int]) -> None:
        full = await self._seats.take(rooms, shared=self._is_up())
        if full is not None:
            raise TooManyConnections(full)
        if visitor.has_left:
            # While its secret was checked or its seat was taken; nobody else would free it.
            self._seats.free(rooms)
        else:
            visitor.rooms.update(rooms)


def _address_in(scope: Mapping[str, Any]) -> str:
    address: str = (scope.get("client") or ("unknown", 0))[0]
    return address


def _safe(address: str) -> str:
    """An address as a log may show it: a proxy passes on whatever it was told."""
    return ascii(address)[1:-1]
