"""All connections of one process: open them, stall and replace some, and close them."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from clients.load.client import LoadClient, SharedState
from clients.load.dialer import Dialer
from clients.load.ledger import ClosedAccounts
from clients.load.messages import Accounts
from clients.load.messages import Streams as StreamList
from clients.load.meter import Meter
from clients.load.payload import PayloadReader, StreamNumbers
from clients.load.plan import Plan, PlannedClient, seats, symbols_of
from clients.load.wire import parse_url
from tickcast.client.connection import describe_tls_error
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import DEFAULT_FEED, StreamKey

_LOOK_S: Final = 0.05
_QUIET_S: Final = 1.5
_RETURN_S: Final = 1.0
_CONNECTING_MAX: Final = 256
"""Maximum number of concurrent handshakes, below the backlog of a listening socket."""


class ClientPool:
    """The connections of one process.

    Attributes:
        meter: the counters of all connections.
        settled: how many planned connections are open or have failed.
        clients: the subscribed clients.
    """

    def __init__(self, plan: Plan, process: int, bases: StreamList) -> None:
        self._plan = plan
        self._seats = list(seats(plan, process))
        self._dice = random.Random(f"{plan.seed} fleet {process}")
        self._streams = StreamNumbers()
        self._bases = self._number(bases)
        self.meter = Meter()
        self.clients: dict[LoadClient, None] = {}
        self.settled = 0
        self._connected: set[LoadClient] = set()
        self._ledger = ClosedAccounts(self._streams)
        self._shared = SharedState(
            plan, parse_url(plan.url), PayloadReader(plan.encoding, self._streams), self._streams,
            self.meter, self._ledger.add_error, self._on_end,
        )  # fmt: skip
        self._popular = Counter(symbols_of(plan, seat.number) for seat in self._seats)
        self._generations: Counter[int] = Counter()
        self._dialer = Dialer(plan, self._shared.address)
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickets = asyncio.Semaphore(_CONNECTING_MAX)
        self._underway = False
        self._ending = False

    def _number(self, streams: StreamList) -> dict[int, int]:
        return {self._streams.number(channel, symbol): seq for channel, symbol, seq in streams}

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task until it finishes or the fleet ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- opening

    async def connect_all(self) -> None:
        """Open all planned connections at the planned rate; return when all are open or failed.

        Raises:
            ConnectionFailed: the first connection could not be opened.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        opening: list[asyncio.Task[None]] = []
        for seat in self._seats:
            await asyncio.sleep(max(0.0, began + seat.due_s - loop.time()))
            if not opening:
                await self._connect_first(seat)
                opening.append(asyncio.create_task(asyncio.sleep(0)))
                continue
            await self._tickets.acquire()
            task = asyncio.create_task(self._take_seat(seat))
            task.add_done_callback(lambda _: self._tickets.release())
            self._tasks.add(task)
            opening.append(task)
        await asyncio.gather(*opening)
        self._tasks.difference_update(opening)
        self._underway = True
        if self._plan.slow_share:
            self.start_task(self._stall_forever())

    async def _connect_first(self, seat: PlannedClient) -> None:
        try:
            await self._open(seat)
        except ConnectionFailed as error:
            raise ConnectionFailed(f"{self._plan.url}: {error}") from None
        self.settled += 1

    async def _take_seat(self, seat: PlannedClient) -> None:
        try:
            await self._open(seat)
        except ConnectionFailed as error:
            self._ledger.add_refusal(str(error))
            self.meter.problems += 1
        self.settled += 1

    async def _open(self, seat: PlannedClient) -> None:
        generation = self._generations[seat.number]
        self._generations[seat.number] += 1
        symbols = symbols_of(self._plan, seat.number, generation)
        held = {} if self._underway else self._held(symbols)
        is_popular = self._popular[symbols] > 1 or generation > 0
        client = LoadClient(self._shared, seat, generation, symbols, held, is_popular)
        try:
            async with asyncio.timeout(self._plan.settle_s):
                await self._dialer.open_connection(client)
                self._connected.add(client)
                await client.subscribed
        except TimeoutError:
            client.abort()
            raise ConnectionFailed("no answer in time") from None
        except asyncio.CancelledError:
            client.abort()
            raise
        except ssl.SSLError as error:
            client.abort()
            raise ConnectionFailed(describe_tls_error(error)) from None
        except ConnectionRefusedError:
            raise ConnectionFailed("no server listens there") from None
        except OSError as error:
            raise ConnectionFailed(error.strerror or str(error)) from None
        self._ledger.add_opened(client)
        self.clients[client] = None
        if not client.is_open:
            self._on_end(client)

    def _held(self, symbols: tuple[str, ...]) -> dict[int, int]:
        """Return the streams with a known position that these symbols cover."""
        if not self._bases:
            return {}
        wanted = Coverage(
            Subscription(channel, symbol) for channel in self._plan.channels for symbol in symbols
        )
        return {
            number: seq
            for number, seq in self._bases.items()
            if wanted.covers(StreamKey(DEFAULT_FEED, *self._streams.names[number]))
        }

    # -- while it runs

    def begin_churn(self) -> None:
        """Start replacing clients, if the plan has churn."""
        if self._plan.churn_rate:
            self.start_task(self._churn_forever())

    async def _churn_forever(self) -> None:
        pause_s = self._plan.processes / self._plan.churn_rate
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += pause_s
            await asyncio.sleep(max(0.0, due - loop.time()))
            candidates = [each for each in self.clients if each.seat.churns and each.is_open]
            if candidates:
                client = self._dice.choice(candidates)
                client.leave()
                self._ledger.accounts.left += 1
                self.start_task(self._take_seat(client.seat))

    async def _stall_forever(self) -> None:
        """Make each slow client stop and resume reading, all of them out of step."""
        loop = asyncio.get_running_loop()
        period = self._plan.stall_s + self._plan.read_s
        while True:
            for client in [each for each in self.clients if each.seat.slow]:
                phase = (loop.time() + client.seat.number * 0.618 * period) % period
                if phase < self._plan.stall_s and client.is_open:
                    self._ledger.accounts.stalls += not client.stalled
                    client.stall()
                else:
                    client.resume_reading()
            await asyncio.sleep(_LOOK_S)

    def _on_end(self, client: LoadClient) -> None:
        """Handle the end of a connection, whichever side closed it."""
        self._connected.discard(client)
        if client not in self.clients:
            return
        del self.clients[client]
        self._ledger.add(client)
        if client.leaving:
            return
        expected = self._ledger.add_close(client)
        if not expected:
            self.meter.problems += 1
        if expected and self._underway and not self._ending:
            self._ledger.accounts.returned += 1
            self.start_task(self._come_back(client.seat))

    async def _come_back(self, seat: PlannedClient) -> None:
        """Reconnect a slow client that the server has closed, as real clients do."""
        await asyncio.sleep(_RETURN_S)
        await self._take_seat(seat)

    # -- ending

    async def await_ticks(self, ends: StreamList, timeout_s: float) -> int:
        """Wait until all ticks up to `ends` have arrived; return how many clients lack some.

        It gives up when nothing has arrived for a while, or after `timeout_s`.
        """
        self._stop_tasks()
        for client in self.clients:
            client.resume_reading()
        numbered = self._number(ends)
        loop = asyncio.get_running_loop()
        began = moved = loop.time()
        seen = -1
        while True:
            lagging = sum(self._lags(client, numbered) for client in self.clients)
            now = loop.time()
            got = sum(client.tally.delivered for client in self.clients)
            if got != seen:
                seen, moved = got, now
            if not lagging or now - moved > _QUIET_S or now - began > timeout_s:
                return lagging
            await asyncio.sleep(_LOOK_S)

    def _stop_tasks(self) -> None:
        self._ending = True
        for task in self._tasks:
            task.cancel()

    def _lags(self, client: LoadClient, ends: Mapping[int, int]) -> bool:
        if client.leaving or client.tally.unnumbered:
            return False
        return client.tally.lags(self._ends_of(client, ends))

    def _ends_of(self, client: LoadClient, ends: Mapping[int, int]) -> dict[int, int]:
        """Return the ends that apply to a client: of streams it had on subscribing or has seen."""
        if client.held:
            return {number: end for number, end in ends.items() if number in client.held}
        positions = client.tally.positions
        return {number: end for number, end in ends.items() if number in positions}

    async def finish(self, ends: StreamList) -> Accounts:
        """Close the accounts and then all connections."""
        self._stop_tasks()
        numbered = self._number(ends)
        clients, self.clients = list(self.clients), {}
        for client in clients:
            mine = self._ends_of(client, numbered)
            if client.leaving:
                self._ledger.add(client)
            elif client.held or not numbered:
                self._ledger.add_whole(client, mine)
            else:
                client.tally.close({} if client.tally.unnumbered else mine)
                self._ledger.add(client)
        for client in list(self._connected):
            client.leave()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 2
        while self._connected and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for client in list(self._connected):
            client.abort()
        self._ledger.accounts.early = self.meter.early
        return self._ledger.close()
