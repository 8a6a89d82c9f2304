"""Admission: checks of handshakes and requests, and the limits that connections count against."""

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
from feed.access.entitlements import LOCAL_GRANT, OPEN_GRANT, Grant
from feed.transport.address_limits import AddressLimiter, AddressLimits
from feed.transport.loop_time import Steps, run_all
from tickcast.broker.limits import ConnectionLimiter, ConnectRateLimiter
from tickcast.logs import SECURITY
from tickcast.settings import Settings
from tickcast.wire.actions import Credentials
from tickcast.wire.addresses import (
    Networks,
    client_network,
    is_allowed_host,
    is_allowed_origin,
    is_local,
)
from tickcast.wire.errors import AuthFailed, HandshakeRefused, TooManyConnections, TryAgain

REFUSALS: Final = (
    "host", "origin", "attempts", "address", "full", "credentials", "key", "shut_out", "requests",
    "busy",
)  # fmt: skip
"""All reasons for refusing a client."""

_TOTAL: Final = "total"
_FULL_RETRY_S: Final = 5
_BUSY_RETRY_S: Final = 1
# The number of handshakes and requests that may wait for the store or a check of credentials. If
# there were more, waiting would take longer than trying again.
_PENDING_MAX: Final = 256
_PENDING_RETRY_S: Final = (1, 3)
# The number of attempts that are counted at the same time. Each uses one of the store's 16 pooled
# connections, and the clients that are already connected need the others.
_ATTEMPTS_AT_ONCE: Final = 8
# Checking a secret takes 20 ms of CPU time, too much for each of thousands of requests.
_PUBLISHERS_MAX: Final = 1000
# Headers that proxies add.
_FORWARDED: Final = (b"x-forwarded-for", b"forwarded", b"via")
_HOST_SHOWN: Final = 100
_ORIGIN_SHOWN: Final = 120
_CLIENTS_PER_STEP: Final = 50

security = logging.getLogger("tickcast.security")


def _nothing() -> None:
    pass


@dataclass(eq=False, slots=True)
class AdmittedClient:
    """A client that was admitted, until `Admission.release`.

    Attributes:
        number: a running number of the clients of this server.
        address: the client's address, escaped for logs.
        grant: the client's rights; None until it has authenticated.
        limits: the limits that its connection counts against: their maximum by name.
        on_change: called when the grant may have changed.
        has_left: True after `Admission.release`. The connection must not be counted from then on.
    """

    number: int
    address: str
    grant: Grant | None = None
    limits: dict[str, int] = field(default_factory=dict)
    on_change: Callable[[], None] = _nothing
    has_left: bool = False


class Admission:
    """Admits clients, and stops counting their connections when they leave.

    Args:
        refused: counts the refusals by reason.
        is_up: returns whether the store is believed to be reachable.

    Attributes:
        defer: called with background steps.
    """

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        address_limits: AddressLimits,
        connections: ConnectionLimiter,
        attempts: ConnectRateLimiter,
        refused: Counter[str],
        is_up: Callable[[], bool],
    ) -> None:
        self.authenticator = authenticator
        self.defer: Callable[[Steps], None] = run_all
        self._settings = settings
        self._address_limits = address_limits
        self._address_limits.on_shut_out = self._log_shut_out
        self._connections = connections
        self._attempts = attempts
        self._refused = refused
        self._is_up = is_up
        self._clients: set[AdmittedClient] = set()
        self._numbers = count(1)
        self._unlimited = Networks(settings.unlimited_addresses)
        # The grants of publishers by their credentials, oldest first.
        self._publishers: dict[Credentials, Grant] = {}
        # Clients that wait for admission.
        self._pending = 0
        self._counting = asyncio.Semaphore(_ATTEMPTS_AT_ONCE)

    # -- checks

    def check_host(self, scope: Mapping[str, Any]) -> None:
        """Check that a request uses a known host name of the server.

        A server that asks for credentials reveals nothing to a page under another name. It checks
        the name only if the setting `hosts` is given.

        Raises HandshakeRefused.
        """
        names = self._settings.hosts
        if self.authenticator.is_required and not names:
            return
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if is_allowed_host(host.decode("latin-1"), (*names, *self._settings.host)):
            return
        shown = ascii(host.decode("latin-1")[:_HOST_SHOWN])
        text = f"the server is not known by the name {shown}; the setting hosts adds names"
        refusal = HandshakeRefused("host", 403, text)
        self._log_refused_request(refusal, scope)
        raise refusal

    async def check_request(self, scope: Mapping[str, Any]) -> Grant:
        """Authorize a plain HTTP request, which counts as an attempt. Raises HandshakeRefused."""
        if not self.authenticator.is_required:
            return self._open_grant(scope)
        address = _address_in(scope)
        try:
            with self._pending_client(), _refusals():
                await self._count_attempt(address)
                credentials = credentials_in(scope["headers"])
                if credentials is None:
                    raise AuthFailed("credentials are needed")
                return await self.authenticator.authenticate(credentials, client_network(address))
        except HandshakeRefused as refusal:
            self._log_refused_request(refusal, scope)
            raise

    async def check_publisher(self, scope: Mapping[str, Any]) -> Grant:
        """Authorize a request to publish.

        A program sends many of these with the same credentials. Once checked, they no longer count
        as attempts.

        Raises:
            HandshakeRefused: the credentials are invalid, or the sender is a page of another site.
        """
        try:
            self._check_origin(scope)
        except HandshakeRefused as refusal:
            self._log_refused_request(refusal, scope)
            raise
        credentials = credentials_in(scope["headers"])
        known = self._publishers.get(credentials) if credentials else None
        grant = self.authenticator.renewed(known) if known else None
        if grant is None:
            grant = await self.check_request(scope)
            if credentials is not None:
                while len(self._publishers) >= _PUBLISHERS_MAX:
                    del self._publishers[next(iter(self._publishers))]
                self._publishers[credentials] = grant
        return grant

    def _open_grant(self, scope: Mapping[str, Any]) -> Grant:
        """The grant of a client that needs no credentials."""
        is_forwarded = any(name in _FORWARDED for name, _ in scope["headers"])
        if is_forwarded and not self._settings.trusted_proxies:
            # All clients of a proxy on this machine seem to come from this machine.
            return OPEN_GRANT
        hosts = (_address_in(scope), *self._settings.host)
        return LOCAL_GRANT if all(map(is_local, hosts)) else OPEN_GRANT

    async def admit(self, scope: Mapping[str, Any]) -> AdmittedClient:
        """Admit the sender of a handshake. Raises HandshakeRefused."""
        address = _address_in(scope)
        client = AdmittedClient(next(self._numbers), _escape(address))
        try:
            self._check_origin(scope)
            with self._pending_client(), _refusals():
                self._check_shut_out(address)
                await self._count_attempt(address)
                await self._count(client, self._limits_of(address))
                if not self.authenticator.is_required:
                    client.grant = self._open_grant(scope)
                elif (credentials := credentials_in(scope["headers"])) is not None:
                    client.grant = await self.authenticate(client, credentials)
        except HandshakeRefused as refusal:
            self.release(client)
            self.log_refusal(refusal.reason, client, str(refusal))
            raise
        except BaseException:
            self.release(client)
            raise
        self._clients.add(client)
        return client

    async def authenticate(self, client: AdmittedClient, credentials: Credentials) -> Grant:
        """Check a client's credentials, and count its connection against those of its key or token.

        Raises AuthFailed, or TryAgain or TooManyConnections if the client may not connect now.
        """
        network = client_network(client.address)
        grant = await self.authenticator.authenticate(credentials, network)
        is_new = client.grant is None and not client.has_left
        if is_new and grant.max_connections is not None:
            subject = f"{grant.proof.value}:{grant.subject}"
            await self._count(client, {subject: grant.max_connections})
        return grant

    def release(self, client: AdmittedClient) -> None:
        """Stop counting a client's connection."""
        client.has_left = True
        self._clients.discard(client)
        self._connections.release(client.limits)
        client.limits = {}
        client.on_change = _nothing

    def limiter_of(self, scope: Mapping[str, Any]) -> AddressLimiter | None:
        """The limiter of the address in a scope; None if it is not limited."""
        return self._address_limits.of(_address_in(scope))

    # -- keys that change

    async def watch_keys(self) -> None:
        """Check the grants of all clients whenever the keys have changed."""
        await self.authenticator.watch_keys(lambda: self.defer(self._recheck_grants()))

    def _recheck_grants(self) -> Steps:
        for number, client in enumerate(list(self._clients), 1):
            if not client.has_left:
                client.on_change()
            if not number % _CLIENTS_PER_STEP:
                yield

    # -- logs

    def log_refusal(self, reason: str, client: AdmittedClient, detail: str) -> None:
        """Count and log a refusal."""
        self._refused[reason] += 1
        extra = {"client": client.number, "address": client.address, "detail": detail}
        security.log(SECURITY, "refused: %s", reason, extra=extra)

    def _log_refused_request(self, refusal: HandshakeRefused, scope: Mapping[str, Any]) -> None:
        sender = AdmittedClient(0, _escape(_address_in(scope)))
        self.log_refusal(refusal.reason, sender, str(refusal))

    def _log_shut_out(self, network: str) -> None:
        extra = {"address": network, "duration_s": self._settings.shut_out_s}
        security.log(SECURITY, "shut out: it keeps flooding", extra=extra)

    # -- single checks

    def _check_origin(self, scope: Mapping[str, Any]) -> None:
        headers = dict(scope["headers"])
        origin = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_allowed_origin(origin, scope["scheme"], host, self._settings.origins):
            # Escaped, because the text is also logged.
            shown = ascii((origin or "")[:_ORIGIN_SHOWN])
            text = f"pages of {shown} may not connect; the setting origins would allow it"
            raise HandshakeRefused("origin", 403, text)

    @contextmanager
    def _pending_client(self) -> Iterator[None]:
        """Count a client that waits for admission, and refuse it if too many do."""
        if self._pending >= _PENDING_MAX:
            retry_s = random.randint(*_PENDING_RETRY_S)
            raise HandshakeRefused("busy", 503, "too many clients are connecting at once", retry_s)
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    def _check_shut_out(self, address: str) -> None:
        """Refuse an address that keeps flooding, before any work is done for it."""
        limiter = self._address_limits.of(address)
        wait_s = limiter.shut_out_s(monotonic()) if limiter is not None else 0
        if wait_s:
            raise HandshakeRefused("shut_out", 429, "this address has sent too much", wait_s)

    async def _count_attempt(self, address: str) -> None:
        if address in self._unlimited:
            return
        async with self._counting:
            wait_s = await self._attempts.count_attempt(
                client_network(address), shared=self._is_up()
            )
        if wait_s:
            if (limiter := self._address_limits.of(address)) is not None:
                limiter.note_refusal(monotonic())
            raise HandshakeRefused("attempts", 429, "too many attempts from this address", wait_s)

    def _limits_of(self, address: str) -> dict[str, int]:
        limits = {_TOTAL: self._settings.connections_max}
        if address not in self._unlimited:
            network = client_network(address)
            limits[f"address:{network}"] = self._settings.connections_per_address_max
        return limits

    async def _count(self, client: AdmittedClient, limits: Mapping[str, int]) -> None:
        """Count a connection against limits. Raises TooManyConnections if one is reached."""
        reached = await self._connections.acquire(limits, shared=self._is_up())
        if reached is not None:
            raise TooManyConnections(reached)
        if client.has_left:
            # It left while this waited, so `release` has already run.
            self._connections.release(limits)
        else:
            client.limits.update(limits)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn errors into refusals of a handshake or request."""
    try:
        yield
    except AuthFailed as error:
        raise HandshakeRefused("credentials", 401, str(error)) from None
    except TryAgain as error:
        raise HandshakeRefused("busy", 503, str(error), _BUSY_RETRY_S) from None
    except TooManyConnections as error:
        kind = error.limit.partition(":")[0]
        if kind == _TOTAL:
            raise HandshakeRefused("full", 503, "the server is full", _FULL_RETRY_S) from None
        reason = "address" if kind == "address" else "key"
        source = "from this address" if kind == "address" else "with this key"
        text = f"too many connections {source}"
        raise HandshakeRefused(reason, 429, text, _FULL_RETRY_S) from None


def _address_in(scope: Mapping[str, Any]) -> str:
    address: str = (scope.get("client") or ("unknown", 0))[0]
    return address


def _escape(address: str) -> str:
    """Escape an address for logs. A proxy may pass on arbitrary text as a client's address."""
    return ascii(address)[1:-1]
