"""Maintain the connections to a venue and pass on the ticks that it sends."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import nullcontext
from time import monotonic
from typing import Final, NoReturn

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)

from producers.venues.capture import Capture, CapturedSession
from producers.venues.intake import Intake
from producers.venues.venue import Notice, NoticeKind, Venue, Wants, shown
from tickcast.client.proxies import NO_SOCKS, proxy_of, through
from tickcast.tasks import ExponentialBackoff, OutageLog, cancel_and_wait
from tickcast.wire.errors import BadFrame, VenueRefused
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

FIRST_DELAY_S: Final = 0.2
MAX_DELAY_S: Final = 30.0
SETTLED_S: Final = 30.0
"""After a connection that has lasted this long, delays start over."""
PING_AFTER_S: Final = 10.0
"""After this much silence, a venue without heartbeats is pinged. It then has as long to answer."""
_OPEN_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 1.0
_STAGGER_S: Final = 0.25
"""The delay between the first attempts of several connections."""
_FRAME_MAX_BYTES: Final = 4 * 1024 * 1024
_FRAME_SHOWN: Final = 200
_REFUSALS_TOLD: Final = 100
_BAD_FRAME_EVERY_S: Final = 1.0
"""Bad frames are logged at most this often. All are counted."""
UNHEARD_AFTER_S: Final = 60.0
_UNHEARD_SHOWN: Final = 20
_RETRIED: Final = frozenset((408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524))
"""HTTP statuses of a refused handshake that are worth a retry."""
_FINAL: Final = (ssl.SSLCertVerificationError, InvalidURI, InvalidHandshake)
"""Errors that no retry fixes, except `InvalidMessage`: the connection was cut in the handshake."""

logger = logging.getLogger("tickcast.venues")


class Runner:
    """Follows some markets of a venue until cancelled.

    Reconnects after every disconnection, with growing delays and jitter. Frames that can't be
    parsed are counted, logged and skipped. They indicate an error in our parser, which would occur
    again after a reconnection.

    Args:
        symbols: our symbols, such as `BTC-USD`, each valid for the venue's rule.
        publish: publishes the ticks of one frame. An exception from it ends the run.
        url: overrides the venue's address.
        capture: records all frames.
        unheard_after_s: seconds after which symbols without ticks are logged.
        dice: adds jitter to the delays; see `ExponentialBackoff`.

    Attributes:
        intake: processes and counts the frames.
        connected: the number of open connections.
        reconnects: how often a connection was lost, or could not be established.
    """

    def __init__(
        self,
        venue: Venue,
        symbols: Sequence[str],
        wants: Wants,
        publish: Callable[[list[Tick]], Awaitable[None]],
        *,
        url: str | None = None,
        capture: Capture | None = None,
        ping_after_s: float = PING_AFTER_S,
        unheard_after_s: float = UNHEARD_AFTER_S,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._venue = venue
        self._names = {symbol: venue.symbols.theirs(symbol) for symbol in symbols}
        self._wants = wants
        self._publish = publish
        self._url = url or venue.url
        self._capture = capture
        self._ping_after_s = ping_after_s
        self._unheard_after_s = unheard_after_s
        self._dice = dice
        self._told: set[str] = set()
        self._refused: set[str] = set()
        self._has_connected = False
        self._proxy: str | None = None
        self._bad_frame_logged_s = -_BAD_FRAME_EVERY_S
        self.intake = Intake(venue, self._names.keys())
        self.connected = 0
        self.reconnects = 0

    async def run(self) -> None:
        """Follow the markets until cancelled or until an error.

        Raises:
            VenueRefused: the venue refuses the connection, or knows none of the symbols.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for number, names in enumerate(self._parts()):
                    group.create_task(self._keep(names, number * _STAGGER_S))
                group.create_task(self._tell_of_unheard())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _parts(self) -> Iterator[list[str]]:
        """Yield the venue's names in parts that fit on one connection."""
        names = list(self._names.values())
        size = max(1, self._venue.limits.streams // self._wants.per_symbol)
        for start in range(0, len(names), size):
            yield names[start : start + size]

    async def _keep(self, names: list[str], delay_s: float) -> NoReturn:
        """Maintain one connection: reconnect whenever it ends."""
        delays = ExponentialBackoff(FIRST_DELAY_S, MAX_DELAY_S, self._dice)
        reminders = OutageLog()
        while True:
            await asyncio.sleep(delay_s)
            try:
                await self._connect_once(names, delays, reminders)
            except ImportError:
                raise VenueRefused(f"{self._url}{through(self._proxy)}: {NO_SOCKS}") from None
            except (OSError, TimeoutError, WebSocketException) as error:
                self._raise_if_final(error)
                failure: Exception = error
            delay_s = delays.next_delay_s()
            self.reconnects += 1
            if reminders.should_log(monotonic(), failure):
                reason = (str(failure) or "it has fallen silent") + through(self._proxy)
                logger.warning(
                    "connection lost",
                    extra={"venue": self._venue.name, "reason": reason,
                           "retry_s": round(delay_s, 2)},
                )  # fmt: skip

    def _raise_if_final(self, error: Exception) -> None:
        """Raise VenueRefused if the first connection failed for a reason that a retry can't fix."""
        if self._has_connected:
            return
        if isinstance(error, InvalidStatus):
            status = error.response.status_code
            if status not in _RETRIED:
                raise VenueRefused(f"{self._url} answers with HTTP status {status}") from None
        elif isinstance(error, _FINAL) and not isinstance(error, InvalidMessage):
            raise VenueRefused(f"{self._url}{through(self._proxy)}: {error}") from None

    async def _connect_once(
        self, names: list[str], delays: ExponentialBackoff, reminders: OutageLog
    ) -> NoReturn:
        """Open a connection and process its frames. The end of the connection is an exception."""
        self._proxy = proxy_of(self._url)
        async with connect(
            self._url,
            proxy=self._proxy,
            compression=None,
            max_size=_FRAME_MAX_BYTES,
            open_timeout=_OPEN_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            ping_interval=None,
            user_agent_header="tickcast",
        ) as socket:
            opened_s = monotonic()
            self._has_connected = True
            reminders.reset()
            self.connected += 1
            logger.info("connected", extra={"venue": self._venue.name, "url": self._url})
            try:
                with self._capture.session(self._url) if self._capture else nullcontext() as kept:
                    await self._follow(socket, names, kept)
            finally:
                self.connected -= 1
                if monotonic() - opened_s >= SETTLED_S:
                    delays.reset()

    async def _follow(
        self, socket: ClientConnection, names: list[str], kept: CapturedSession | None
    ) -> NoReturn:
        # Subscribe in a task: a venue may send frames before all subscriptions are requested.
        asking = asyncio.create_task(self._ask(socket, names, kept))
        try:
            while True:
                frame = await self._next_frame(socket)
                received = Time.now()
                if kept:
                    kept.received(frame, received)
                await self._take(frame, received)
        finally:
            await cancel_and_wait([asking])
            if not asking.cancelled():
                asking.exception()  # Mark it as retrieved: the socket raises the same error.

    async def _ask(
        self, socket: ClientConnection, names: list[str], kept: CapturedSession | None
    ) -> None:
        """Subscribe, no faster than the venue allows."""
        for message in self._venue.subscribe(names, self._wants):
            await socket.send(message, text=True)
            if kept:
                kept.sent(message, Time.now())
            await asyncio.sleep(1 / self._venue.limits.messages_per_s)

    async def _next_frame(self, socket: ClientConnection) -> bytes:
        """Return the next frame.

        Raises:
            TimeoutError: the venue has fallen silent.
            ConnectionClosed: the connection has ended.
        """
        if self._venue.silence_max_s is not None:
            async with asyncio.timeout(self._venue.silence_max_s):
                return await socket.recv(decode=False)
        # The library's keepalive is unsuitable: while Redis is slow, we read nothing, including
        # pongs, and the keepalive would close a healthy connection.
        pong: asyncio.Future[float] | None = None
        while True:
            try:
                async with asyncio.timeout(self._ping_after_s):
                    return await socket.recv(decode=False)
            except TimeoutError:
                if pong is not None and not pong.done():
                    raise
                pong = asyncio.ensure_future(await socket.ping())
                pong.add_done_callback(_forget)

    async def _take(self, frame: bytes, received: Time) -> None:
        try:
            taken = self.intake.receive(frame, received)
        except BadFrame as error:
            self._log_bad_frame(frame, error)
            return
        if isinstance(taken, Notice):
            if taken.kind is NoticeKind.REFUSED:
                self._hear_refusal(taken.text)
        elif taken:
            await self._publish(taken)

    def _log_bad_frame(self, frame: bytes, error: BadFrame) -> None:
        now_s = monotonic()
        if now_s - self._bad_frame_logged_s < _BAD_FRAME_EVERY_S:
            return
        self._bad_frame_logged_s = now_s
        text = frame[:_FRAME_SHOWN].decode("utf-8", "backslashreplace")
        logger.error("bad frame: %s", error, extra={"venue": self._venue.name, "frame": text})

    async def _tell_of_unheard(self) -> None:
        """Log symbols without ticks: some venues silently accept unknown symbols."""
        await asyncio.sleep(self._unheard_after_s)
        unheard = sorted(self._names.keys() - self.intake.heard_of - self._refused)
        if unheard:
            logger.warning(
                "nothing has come of some symbols: quiet, or unknown to the venue?",
                extra={"venue": self._venue.name, "count": len(unheard),
                       "symbols": " ".join(unheard[:_UNHEARD_SHOWN])},
            )  # fmt: skip

    def _hear_refusal(self, text: str) -> None:
        """Log a refusal once. Raise VenueRefused when all symbols have been refused."""
        if text not in self._told and len(self._told) < _REFUSALS_TOLD:
            self._told.add(text)
            logger.error("the venue says: %s", shown(text), extra={"venue": self._venue.name})
        for symbol, name in self._names.items():
            if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", text):
                self._refused.add(symbol)
        if len(self._refused) == len(self._names):
            raise VenueRefused(f"{self._venue.name}: {shown(text)}")


def _forget(pong: asyncio.Future[float]) -> None:
    """Mark the error of a pending pong as retrieved: `recv` reports the lost connection."""
    if not pong.cancelled():
        pong.exception()
