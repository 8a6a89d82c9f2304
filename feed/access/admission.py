"""Admission control: the checks of a handshake, and the seats that a connection occupies."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any, Final

from feed.access.authenticator import Authenticator, credentials_in
from feed.access.grant import OPEN_GRANT, Grant
from feed.transport.address_limits import AddressLimiter, AddressLimits
from feed.transport.slices import Steps, run_all
from tickcast.addresses import Networks, client_network, is_allowed_host, is_allowed_origin
from tickcast.broker.limits import ConnectionLimiter, ConnectRateLimiter
from tickcast.logs import SECURITY
from tickcast.settings import Settings
from tickcast.wire.actions import Credentials
from tickcast.wire.errors import AuthFailed, HandshakeRefused, TooManyConnections, TryAgain

REFUSALS: Final = (
    "host", "origin", "attempts", "address", "full", "credentials", "key", "shut_out", "requests",
    "busy",
)  # fmt: skip
"""All reasons for refusing a client."""
_TOTAL: Final = "total"
_FULL_RETRY_S: Final = 5
_BUSY_RETRY_S: Final = 1
_ENTERING_MAX: Final = 256
"""The number of handshakes and requests that may wait for the store or a check of credentials.
If there were more, waiting would take longer than trying again."""
_ENTERING_RETRY_S: Final = (1, 3)
_ATTEMPTS_AT_ONCE: Final = 8
"""The number of attempts that are counted at the same time. Each uses one of the store's 16 pooled
connections, and the clients that are already connected need the others."""
_HOST_SHOWN: Final = 100
_ORIGIN_SHOWN: Final = 120
_VISITORS_PER_STEP: Final = 50

security = logging.getLogger("tickcast.security")


def _nothing() -> None:
    pass


@dataclass(eq=False, slots=True)
class AdmittedClient:
    """A client that was admitted, until `Admission.leave`.

    Attributes:
        number: a running number of the visitors of this server.
        address: the client's address, escaped for logs.
        grant: the client's rights; None until it has authenticated.
        rooms: the rooms in which it occupies a seat.
        on_change: called when the grant may have changed.
        has_left: True after `Admission.leave`. The visitor must not take a seat from then on.
    """

    number: int
    address: str
    grant: Grant | None = None
    rooms: dict[str, int] = field(default_factory=dict)
    on_change: Callable[[], None] = _nothing
    has_left: bool = False


class Admission:
    """Admits clients, and releases their seats when they leave.

    Args:
        is_up: returns whether the store is believed to be reachable.

    Attributes:
        defer: called with background steps.
    """

    def __init__(
        self,
        settings: Settings,
        gate: Authenticator,
        limits: AddressLimits,
        seats: ConnectionLimiter,
        attempts: ConnectRateLimiter,
        refused: Counter[str],
        is_up: Callable[[], bool],
    ) -> None:
        self.gate = gate
        self._settings = settings
        self._limits = limits
        self._limits.on_shut_out = self._note_shut_out
        self._seats = seats
        self._attempts = attempts
        self._refused = refused
        self._is_up = is_up
        self.defer: Callable[[Steps], None] = run_all
        self._visitors: set[AdmittedClient] = set()
        self._numbers = count(1)
        self._unlimited = Networks(settings.unlimited_addresses)
        self._entering = 0
        self._noting = asyncio.Semaphore(_ATTEMPTS_AT_ONCE)

    def check_host(self, scope: Mapping[str, Any]) -> None:
        """Check that a request uses a known host name of the server.

        A server that asks for credentials reveals nothing to a page under another name. It checks
        the name only if the setting `hosts` is given.

        Raises:
            Refused: the name is unknown.
        """
        names = self._settings.hosts
        if self.gate.asks and not names:
            return
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if is_allowed_host(host.decode("latin-1"), (*names, *self._settings.host)):
            return
        shown = ascii(host.decode("latin-1")[:_HOST_SHOWN])
        refusal = HandshakeRefused(
            "host",
            403,
            f"the server is not known by the name {shown}; the setting hosts adds names",
        )
        self.note_refusal(
            refusal.reason, AdmittedClient(0, _safe(_address_in(scope))), str(refusal)
        )
        raise refusal

    async def enter(self, scope: Mapping[str, Any]) -> AdmittedClient:
        """Admit the sender of a handshake.

        Args:
            scope: the ASGI connection scope.

        Raises:
            Refused: the client may not connect, or not now.
        """
        address = _address_in(scope)
        visitor = AdmittedClient(next(self._numbers), _safe(address))
        try:
            self._check_origin(scope)
            with self._one_more():
                await self._take_place(visitor, address)
                await self._check_credentials(visitor, scope)
        except HandshakeRefused as refusal:
            self.leave(visitor)
            self.note_refusal(refusal.reason, visitor, str(refusal))
            raise
        except BaseException:
            self.leave(visitor)
            raise
        self._visitors.add(visitor)
        return visitor

    def limiter_of(self, scope: Mapping[str, Any]) -> AddressLimiter | None:
        """The limiter of the address in a scope; None if it is not limited."""
        return self._limits.of(_address_in(scope))

    async def check_request(self, scope: Mapping[str, Any]) -> Grant:
        """Authorize a plain HTTP request. It takes no seat, but it counts as an attempt.

        Raises:
            Refused: the sender may see nothing, or not now.
        """
        if not self.gate.asks:
            return OPEN_GRANT
        address = _address_in(scope)
        try:
            with self._one_more():
                await self._note_attempt(address)
                credentials = credentials_in(scope["headers"])
                if credentials is None:
                    raise AuthFailed("credentials are needed")
                return await self.gate.admit(credentials, client_network(address))
        except AuthFailed as error:
            refusal = HandshakeRefused("credentials", 401, str(error))
        except TryAgain as error:
            refusal = HandshakeRefused("busy", 503, str(error), _BUSY_RETRY_S)
        except HandshakeRefused as error:
            refusal = error
        self.note_refusal(refusal.reason, AdmittedClient(0, _safe(address)), str(refusal))
        raise refusal

    async def identify(self, visitor: AdmittedClient, credentials: Credentials) -> Grant:
        """Check a visitor's credentials, and take a seat for its key or token.

        Raises:
            AuthFailed: the credentials are not valid.
            TryAgain, TooManyConnections: the visitor may not connect now.
        """
        grant = await self.gate.admit(credentials, client_network(visitor.address))
        needs_seat = visitor.grant is None and not visitor.has_left
        if needs_seat and grant.max_connections is not None:
            room = f"{grant.proof.value}:{grant.subject}"
            await self._take(visitor, {room: grant.max_connections})
        return grant

    def leave(self, visitor: AdmittedClient) -> None:
        """Release everything that a visitor holds."""
        visitor.has_left = True
        self._visitors.discard(visitor)
        self._seats.free(visitor.rooms)
        visitor.rooms = {}
        visitor.on_change = _nothing

    def note_refusal(self, reason: str, visitor: AdmittedClient, detail: str) -> None:
        """Count and log a refusal."""
        self._refused[reason] += 1
        extra = {"client": visitor.number, "address": visitor.address, "detail": detail}
        security.log(SECURITY, "refused: %s", reason, extra=extra)

    async def watch(self) -> None:
        """Check the grants of all visitors whenever the keys have changed."""
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
        if not is_allowed_origin(origin, scope["scheme"], host, self._settings.origins):
            # Escaped, because the text is also logged.
            shown = ascii((origin or "")[:_ORIGIN_SHOWN])
            raise HandshakeRefused(
                "origin",
                403,
                f"pages of {shown} may not connect; the setting origins would allow it",
            )

    async def _take_place(self, visitor: AdmittedClient, address: str) -> None:
        rooms = {_TOTAL: self._settings.connections_max}
        self._check_shut_out(address)
        await self._note_attempt(address)
        if address not in self._unlimited:
            rooms[f"address:{client_network(address)}"] = self._settings.connections_per_address_max
        try:
            await self._take(visitor, rooms)
        except TooManyConnections as error:
            if error.limit == _TOTAL:
                raise HandshakeRefused("full", 503, "the server is full", _FULL_RETRY_S) from None
            raise HandshakeRefused(
                "address", 429, "too many connections from this address", _FULL_RETRY_S
            ) from None

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        """Count a client that is waiting for admission.

        Raises:
            Refused: too many clients are waiting.
        """
        if self._entering >= _ENTERING_MAX:
            retry_s = random.randint(*_ENTERING_RETRY_S)
            raise HandshakeRefused("busy", 503, "too many are connecting at once", retry_s)
        self._entering += 1
        try:
            yield
        finally:
            self._entering -= 1

    def _check_shut_out(self, address: str) -> None:
        """Refuse an address that keeps flooding, before any work is done for it."""
        limiter = self._limits.of(address)
        wait_s = limiter.shut_out_s(monotonic()) if limiter is not None else 0
        if wait_s:
            raise HandshakeRefused("shut_out", 429, "this address has sent too much", wait_s)

    def _note_shut_out(self, party: str) -> None:
        extra = {"address": party, "duration_s": self._settings.shut_out_s}
        security.log(SECURITY, "shut out: it keeps flooding", extra=extra)

    async def _note_attempt(self, address: str) -> None:
        if address in self._unlimited:
            return
        async with self._noting:
            wait_s = await self._attempts.note(client_network(address), shared=self._is_up())
        if wait_s:
            if (limiter := self._limits.of(address)) is not None:
                limiter.note_refusal(monotonic())
            raise HandshakeRefused("attempts", 429, "too many attempts from this address", wait_s)

    async def _check_credentials(self, visitor: AdmittedClient, scope: Mapping[str, Any]) -> None:
        if not self.gate.asks:
            visitor.grant = OPEN_GRANT
            return
        try:
            credentials = credentials_in(scope["headers"])
            if credentials is not None:
                visitor.grant = await self.identify(visitor, credentials)
        except AuthFailed as error:
            raise HandshakeRefused("credentials", 401, str(error)) from None
        except TryAgain as error:
            raise HandshakeRefused("busy", 503, str(error), _BUSY_RETRY_S) from None
        except TooManyConnections:
            raise HandshakeRefused(
                "key", 429, "too many connections with this key", _FULL_RETRY_S
            ) from None

    async def _take(self, visitor: AdmittedClient, rooms: Mapping[str, int]) -> None:
        full = await self._seats.acquire(rooms, shared=self._is_up())
        if full is not None:
            raise TooManyConnections(full)
        if visitor.has_left:
            # It left while its secret was checked or its seat was taken. Free the seat here, since
            # `leave` has already run.
            self._seats.free(rooms)
        else:
            visitor.rooms.update(rooms)


def _address_in(scope: Mapping[str, Any]) -> str:
    address: str = (scope.get("client") or ("unknown", 0))[0]
    return address


def _safe(address: str) -> str:
    """Escape an address for logs. A proxy may pass on arbitrary text as a client's address."""
    return ascii(address)[1:-1]
