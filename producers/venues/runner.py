"""Keeps connections to a venue, whichever it is, and hands on the ticks that come by them."""

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

from feed.delays import Delays, Reminders
from feed.errors import BadFrame, VenueRefused
from feed.proxies import NO_SOCKS, proxy_of, through
from feed.tasks import end_tasks
from feed.ticks import Tick
from feed.times import Time
from producers.venues.capture import Capture, Session
from producers.venues.intake import Intake
from producers.venues.venue import Kind, Notice, Venue, Wants, shown

FIRST_DELAY_S: Final = 0.2
MAX_DELAY_S: Final = 30.0
SETTLED_S: Final = 30.0
"""After a connection that has lasted so long, delays begin anew."""
PING_AFTER_S: Final = 10.0
"""A venue without heartbeats that is silent for so long is pinged, and then has as long again."""
_OPEN_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 1.0
_STAGGER_S: Final = 0.25
"""Between the first attempts of several connections."""
_FRAME_MAX_BYTES: Final = 4 * 1024 * 1024
_FRAME_SHOWN: Final = 200
_REFUSALS_TOLD: Final = 100
_BAD_FRAME_EVERY_S: Final = 1.0
"""More often none is logged; all are counted."""
UNHEARD_AFTER_S: Final = 60.0
_UNHEARD_SHOWN: Final = 20
_RETRIED: Final = frozenset((408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524))
"""HTTP statuses of a refused handshake that may be better next time."""
_FINAL: Final = (ssl.SSLCertVerificationError, InvalidURI, InvalidHandshake)
"""But for the kind of `InvalidHandshake` that means that the connection was cut amid it."""

logger = logging.getLogger("tickcast.venues")


class Runner:
    """Follows some markets of a venue until it is cancelled.

    It comes back after every cut, with delays that grow and are spread. What can't be parsed is
    counted, logged and left out: that is a mistake of ours, and would come again after a
    reconnection.

    Args:
        symbols: ours, such as `BTC-USD`, each known to the venue's rule.
        publish: takes the ticks of one frame; what it raises ends the run.
        url: where, if not at the venue's own address.
        capture: keeps all frames.
        unheard_after_s: of what nothing has come by then is told.
        dice: spreads the delays, as `Delays` has it.

    Attributes:
        intake: counts what comes.
        connected: connections that are open.
        reconnects: how often one was lost, or could not be had.
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
        """Follow the market; it ends only by being cancelled, or by an error.

        Raises:
            VenueRefused: the venue will not have us, or knows none of the symbols.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for number, names in enumerate(self._parts()):
                    group.create_task(self._keep(names, number * _STAGGER_S))
                group.create_task(self._tell_of_unheard())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _parts(self) -> Iterator[list[str]]:
        """The venue's names, as many at a time as one connection may carry."""
        names = list(self._names.values())
        size = max(1, self._venue.limits.streams // self._wants.per_symbol)
        for start in range(0, len(names), size):
            yield names[start : start + size]

    async def _keep(self, names: list[str], delay_s: float) -> NoReturn:
        """Keep one connection."""
        delays = Delays(FIRST_DELAY_S, MAX_DELAY_S, self._dice)
        reminders = Reminders()
        while True:
            await asyncio.sleep(delay_s)
            try:
                await self._connect_once(names, delays, reminders)
            except ImportError:
                raise VenueRefused(f"{self._url}{through(self._proxy)}: {NO_SOCKS}") from None
            except (OSError, TimeoutError, WebSocketException) as error:
                self._raise_if_final(error)
                failure: Exception = error
            delay_s = delays.next_s()
            self.reconnects += 1
            if reminders.is_due(monotonic(), failure):
                reason = (str(failure) or "it has fallen silent") + through(self._proxy)
                logger.warning(
                    "connection lost",
                    extra={"venue": self._venue.name, "reason": reason,
                           "retry_s": round(delay_s, 2)},
                )  # fmt: skip

    def _raise_if_final(self, error: Exception) -> None:
        """What was never any better will not get so, unless a network or a server is down."""
        if self._has_connected:
            return
        if isinstance(error, InvalidStatus):
            status = error.response.status_code
            if status not in _RETRIED:
                raise VenueRefused(f"{self._url} answers with HTTP status {status}") from None
        elif isinstance(error, _FINAL) and not isinstance(error, InvalidMessage):
            raise VenueRefused(f"{self._url}{through(self._proxy)}: {error}") from None

    async def _connect_once(
        self, names: list[str], delays: Delays, reminders: Reminders
    ) -> NoReturn:
        """Open a connection, and follow it until it ends, which it does with an exception."""
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
                    delays.begin_anew()

    async def _follow(
        self, socket: ClientConnection, names: list[str], kept: Session | None
    ) -> NoReturn:
        # Meanwhile, since a venue may send before all is asked for.
        asking = asyncio.create_task(self._ask(socket, names, kept))
        try:
            while True:
                frame = await self._next_frame(socket)
                received = Time.now()
                if kept:
                    kept.received(frame, received)
                await self._take(frame, received)
        finally:
            await end_tasks([asking])
            if not asking.cancelled():
                asking.exception()  # The socket says the same.

    async def _ask(self, socket: ClientConnection, names: list[str], kept: Session | None) -> None:
        """Subscribe, no faster than the venue allows."""
        for message in self._venue.subscribe(names, self._wants):
            await socket.send(message, text=True)
            if kept:
                kept.sent(message, Time.now())
            await asyncio.sleep(1 / self._venue.limits.messages_per_s)

    async def _next_frame(self, socket: ClientConnection) -> bytes:
        """The next frame.

        Raises:
            TimeoutError: the venue has fallen silent.
            ConnectionClosed: it has ended.
        """
        if self._venue.silence_max_s is not None:
            async with asyncio.timeout(self._venue.silence_max_s):
                return await socket.recv(decode=False)
        # The library's own keepalive would not do: while Redis is slow nothing is read, pongs
        # included, and a sound connection would be given up.
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
            taken = self.intake.take(frame, received)
        except BadFrame as error:
            self._log_bad_frame(frame, error)
            return
        if isinstance(taken, Notice):
            if taken.kind is Kind.REFUSED:
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
        """Some venues take a subscription to what they do not have, and say nothing."""
        await asyncio.sleep(self._unheard_after_s)
        unheard = sorted(self._names.keys() - self.intake.heard_of - self._refused)
        if unheard:
            logger.warning(
                "nothing has come of some symbols: quiet, or unknown to the venue?",
                extra={"venue": self._venue.name, "count": len(unheard),
                       "symbols": " ".join(unheard[:_UNHEARD_SHOWN])},
            )  # fmt: skip

    def _hear_refusal(self, text: str) -> None:
        """Tell it once; raise VenueRefused when no symbol is left."""
        if text not in self._told and len(self._told) < _REFUSALS_TOLD:
            self._told.add(text)
            logger.error("the venue says: %s", shown(text), extra={"venue": self._venue.name})
        for symbol, name in self._names.items():
            if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", text):
                self._refused.add(symbol)
        if len(self._refused) == len(self._names):
            raise VenueRefused(f"{self._venue.name}: {shown(text)}")


def _forget(pong: asyncio.Future[float]) -> None:
    """A pong that never comes fails with the connection, of which somebody else tells."""
    if not pong.cancelled():
        pong.exception()
