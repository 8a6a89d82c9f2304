"""Maintain the connections to a venue and pass on the ticks that it sends."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
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

from producers.venues.capture import CaptureDirectory, CaptureFile
from producers.venues.normalizer import Normalizer
from tickcast.client.connection import SOCKS_HINT, describe_proxy, proxy_for
from tickcast.tasks import ExponentialBackoff, OutageLog, cancel_and_wait
from tickcast.venues import Notice, NoticeKind, TickKinds, Venue, batched, escape
from tickcast.wire.errors import BadFrame, VenueRefused
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

FIRST_DELAY_S: Final = 0.2
MAX_DELAY_S: Final = 30.0
# After a connection that has lasted this long, delays start over.
STABLE_AFTER_S: Final = 30.0
# After this much silence, a venue without heartbeats is pinged. It then has as long to answer.
PING_AFTER_S: Final = 10.0
# Symbols without ticks are logged after this time.
REPORT_SILENT_AFTER_S: Final = 60.0

_OPEN_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 1.0
# The delay between the first attempts of several connections.
_STAGGER_S: Final = 0.25
_FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
_FRAME_SHOWN_MAX: Final = 200
_SYMBOLS_SHOWN_MAX: Final = 20
_REFUSALS_LOGGED_MAX: Final = 100
# Bad frames are logged at most this often. All are counted.
_BAD_FRAME_EVERY_S: Final = 1.0
# HTTP statuses of a refused handshake that are worth a retry.
_RETRIED_STATUSES: Final = frozenset((408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524))
# Errors that no retry fixes, except `InvalidMessage`: the connection was cut in the handshake.
_FINAL_ERRORS: Final = (ssl.SSLCertVerificationError, InvalidURI, InvalidHandshake)

logger = logging.getLogger("tickcast.venues")


class VenueClient:
    """Follows some markets of a venue until cancelled.

    Reconnects after every disconnection, with growing delays and jitter. Frames that can't be
    parsed are counted, logged and skipped. They indicate an error in our parser, which would occur
    again after a reconnection.

    Args:
        symbols: our symbols, such as `BTC-USD`, each valid for the venue's rule.
        publish: publishes the ticks of one frame. Its exceptions end `follow_markets`.
        url: overrides the venue's address.
        capture: records all frames.
        jitter: returns a random number from 0 to 1 for the delays; see `ExponentialBackoff`.
    """

    def __init__(
        self,
        venue: Venue,
        symbols: Sequence[str],
        kinds: TickKinds,
        publish: Callable[[list[Tick]], Awaitable[None]],
        *,
        url: str | None = None,
        capture: CaptureDirectory | None = None,
        ping_after_s: float = PING_AFTER_S,
        report_silent_after_s: float = REPORT_SILENT_AFTER_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._venue = venue
        # The venue's name of each symbol.
        self._markets = {symbol: venue.symbols.to_market(symbol) for symbol in symbols}
        self._kinds = kinds
        self._publish = publish
        self._url = url or venue.url
        self._capture = capture
        self._ping_after_s = ping_after_s
        self._report_silent_after_s = report_silent_after_s
        self._jitter = jitter
        self._logged_refusals: set[str] = set()
        self._refused_symbols: set[str] = set()
        self._has_connected = False
        self._proxy: str | None = None
        self._bad_frame_logged_s = -_BAD_FRAME_EVERY_S
        self.normalizer = Normalizer(venue, self._markets.keys())
        # The number of open connections.
        self.connected = 0
        # How often a connection was lost, or could not be established.
        self.reconnects = 0

    async def follow_markets(self) -> None:
        """Follow the markets until cancelled or until an error.

        Raises:
            VenueRefused: the venue refuses the connection, or knows none of the symbols.
        """
        streams = self._kinds.streams_per_symbol
        markets_max = max(1, self._venue.limits.streams // streams)
        try:
            async with asyncio.TaskGroup() as group:
                for number, markets in enumerate(batched([*self._markets.values()], markets_max)):
                    group.create_task(self._stay_connected(markets, number * _STAGGER_S))
                group.create_task(self._report_silent_symbols())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    # -- connections

    async def _stay_connected(self, markets: Sequence[str], delay_s: float) -> NoReturn:
        """Maintain one connection: reconnect whenever it ends."""
        delays = ExponentialBackoff(FIRST_DELAY_S, MAX_DELAY_S, self._jitter)
        outages = OutageLog()
        while True:
            await asyncio.sleep(delay_s)
            try:
                await self._connect_once(markets, delays, outages)
            except ImportError:
                raise VenueRefused(
                    f"{self._url}{describe_proxy(self._proxy)}: {SOCKS_HINT}"
                ) from None
            except (OSError, TimeoutError, WebSocketException) as error:
                self._raise_if_final(error)
                failure: Exception = error
            delay_s = delays.next_delay_s()
            self.reconnects += 1
            if outages.should_log(monotonic(), failure):
                reason = (str(failure) or "no frame arrived in time") + describe_proxy(self._proxy)
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
            if status not in _RETRIED_STATUSES:
                raise VenueRefused(f"{self._url} answers with HTTP status {status}") from None
        elif isinstance(error, _FINAL_ERRORS) and not isinstance(error, InvalidMessage):
            raise VenueRefused(f"{self._url}{describe_proxy(self._proxy)}: {error}") from None

    async def _connect_once(
        self, markets: Sequence[str], delays: ExponentialBackoff, outages: OutageLog
    ) -> NoReturn:
        """Open a connection and process its frames. The end of the connection is an exception."""
        self._proxy = proxy_for(self._url)
        async with connect(
            self._url,
            proxy=self._proxy,
            compression=None,
            max_size=_FRAME_BYTES_MAX,
            open_timeout=_OPEN_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            ping_interval=None,
            user_agent_header="tickcast",
        ) as socket:
            opened_s = monotonic()
            self._has_connected = True
            outages.reset()
            self.connected += 1
            logger.info("connected", extra={"venue": self._venue.name, "url": self._url})
            capture = self._capture.open_file(self._url) if self._capture else nullcontext()
            try:
                with capture as file:
                    await self._follow(socket, markets, file)
            finally:
                self.connected -= 1
                if monotonic() - opened_s >= STABLE_AFTER_S:
                    delays.reset()

    async def _follow(
        self, socket: ClientConnection, markets: Sequence[str], file: CaptureFile | None
    ) -> NoReturn:
        messages = self._venue.subscribe(markets, self._kinds)
        # Send them in a task: a venue may send frames before all subscriptions are requested.
        subscribing = asyncio.create_task(self._subscribe(socket, messages, file))
        try:
            while True:
                frame = await self._next_frame(socket)
                received = Time.now()
                if file:
                    file.write_received(frame, received)
                await self._process(frame, received)
        finally:
            await cancel_and_wait([subscribing])
            if not subscribing.cancelled():
                # Mark it as retrieved: the socket raises the same error.
                subscribing.exception()

    async def _subscribe(
        self, socket: ClientConnection, messages: Sequence[bytes], file: CaptureFile | None
    ) -> None:
        """Subscribe, no faster than the venue allows."""
        for message in messages:
            await socket.send(message, text=True)
            if file:
                file.write_sent(message, Time.now())
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
                pong.add_done_callback(_ignore_result)

    # -- frames

    async def _process(self, frame: bytes, received: Time) -> None:
        try:
            content = self.normalizer.process(frame, received)
        except BadFrame as error:
            self._log_bad_frame(frame, error)
            return
        if isinstance(content, Notice):
            if content.kind is NoticeKind.REFUSED:
                self._handle_refusal(content.text)
        elif content:
            await self._publish(content)

    def _log_bad_frame(self, frame: bytes, error: BadFrame) -> None:
        now_s = monotonic()
        if now_s - self._bad_frame_logged_s < _BAD_FRAME_EVERY_S:
            return
        self._bad_frame_logged_s = now_s
        text = frame[:_FRAME_SHOWN_MAX].decode("utf-8", "backslashreplace")
        logger.error("bad frame: %s", error, extra={"venue": self._venue.name, "frame": text})

    def _handle_refusal(self, text: str) -> None:
        """Log a refusal once. Raise VenueRefused when all symbols have been refused."""
        if text not in self._logged_refusals and len(self._logged_refusals) < _REFUSALS_LOGGED_MAX:
            self._logged_refusals.add(text)
            logger.error("the venue says: %s", escape(text), extra={"venue": self._venue.name})
        for symbol, market in self._markets.items():
            # `WBTC-USD` doesn't mean `BTC-USD`.
            if re.search(rf"(?<![\w/-]){re.escape(market)}(?![\w/-])", text):
                self._refused_symbols.add(symbol)
        if len(self._refused_symbols) == len(self._markets):
            raise VenueRefused(f"{self._venue.name}: {escape(text)}")

    async def _report_silent_symbols(self) -> None:
        """Log symbols without ticks: some venues silently accept unknown symbols."""
        await asyncio.sleep(self._report_silent_after_s)
        active = self.normalizer.active_symbols | self._refused_symbols
        silent = sorted(self._markets.keys() - active)
        if silent:
            logger.warning(
                "no ticks for some symbols: quiet, or unknown to the venue?",
                extra={"venue": self._venue.name, "count": len(silent),
                       "symbols": " ".join(silent[:_SYMBOLS_SHOWN_MAX])},
            )  # fmt: skip


def _ignore_result(pong: asyncio.Future[float]) -> None:
    """Mark the error of a pending pong as retrieved: `recv` reports the lost connection."""
    if not pong.cancelled():
        pong.exception()
