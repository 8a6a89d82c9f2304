"""All connections of one process: open them, stall and replace some, and close them."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from clients.load.addresses import describe_error, parse_url
from clients.load.client import NO_CLOSE_FRAME, LoadClient, PoolState
from clients.load.measurements import Second, WorkerResult, add_counts
from clients.load.plan import Plan, PlannedClient, draw_symbols, plan_clients
from clients.load.sequence import OUTCOMES
from tickcast.client.connection import verifying_context
from tickcast.wire.errors import CloseCode, ConnectionFailed
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import DEFAULT_FEED, StreamKey

# Channel, symbol and `seq` of streams.
StreamPositions = list[tuple[str, str, int]]

_CHECK_S: Final = 0.05
_QUIET_S: Final = 1.5
_RETURN_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 2.0
_SLOW_RCVBUF_BYTES: Final = 16 * 1024
_FAULTS_MAX: Final = 20
# Concurrent handshakes, fewer than the backlog of a listening socket.
_CONNECTING_MAX: Final = 256
# Close codes for a client that does not read. A close frame may not get through to it.
_SLOW_CLOSES: Final = frozenset((CloseCode.SLOW_CLIENT, NO_CLOSE_FRAME))


class ClientPool:
    """The connections of one process."""

    def __init__(self, plan: Plan, process: int, bases: StreamPositions) -> None:
        self._plan = plan
        self._planned = list(plan_clients(plan, process))
        self._rng = random.Random(f"{plan.seed} churn {process}")
        self.state = PoolState(plan, parse_url(plan.url), self._on_close)
        self._result = self.state.result
        # The streams' positions before the run, by number.
        self._bases = self._numbered(bases)
        # The subscribed clients; a dict, because it keeps their order.
        self.clients: dict[LoadClient, None] = {}
        # Planned connections that are open or have failed.
        self.attempted = 0
        self._connected: set[LoadClient] = set()
        self._equal_clients = Counter(draw_symbols(plan, each.number) for each in self._planned)
        self._generations: Counter[int] = Counter()
        self._tls = verifying_context(plan.ca_file) if self.state.uri.secure else None
        self._addresses: list[Any] = []
        self._tasks: set[asyncio.Task[None]] = set()
        # Whether all planned connections were opened, and whether no more are.
        self._is_running = self._is_ending = False

    def _numbered(self, positions: StreamPositions) -> dict[int, int]:
        number = self.state.streams.number
        return {number(channel, symbol): seq for channel, symbol, seq in positions}

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- opening

    async def connect_all(self) -> None:
        """Open all planned connections at the planned rate; return when all are open or failed.

        Raises ConnectionFailed if the first connection could not be opened.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        first, *others = self._planned
        try:
            await self._connect(first)
        except ConnectionFailed as error:
            raise ConnectionFailed(f"{self._plan.url}: {error}") from None
        self.attempted += 1
        slots = asyncio.Semaphore(_CONNECTING_MAX)
        opening: list[asyncio.Task[None]] = []
        for planned in others:
            await asyncio.sleep(max(0.0, began + planned.due_s - loop.time()))
            await slots.acquire()
            task = self._start_task(self._try_to_connect(planned))
            task.add_done_callback(lambda _: slots.release())
            opening.append(task)
        await asyncio.gather(*opening)
        self._is_running = True
        if self._plan.slow_share:
            self._start_task(self._stall_forever())

    async def _try_to_connect(self, planned: PlannedClient, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        try:
            await self._connect(planned)
        except ConnectionFailed as error:
            add_counts(self._result.connections.refusals, {str(error)[:160]: 1})
            self.state.second.problems += 1
        self.attempted += 1

    async def _connect(self, planned: PlannedClient) -> None:
        generation = self._generations[planned.number]
        self._generations[planned.number] += 1
        symbols = draw_symbols(self._plan, planned.number, generation)
        bases = {} if self._is_running else self._bases_of(symbols)
        same_bytes = self._equal_clients[symbols] > 1 or generation > 0
        client = LoadClient(self.state, planned, generation, symbols, bases, same_bytes)
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                await self._open_socket(client)
                self._connected.add(client)
                await client.subscribed
        except OSError as error:
            client.abort()
            raise ConnectionFailed(describe_error(error)) from None
        except asyncio.CancelledError:
            client.abort()
            raise
        connections = self._result.connections
        connections.opened += 1
        add_counts(connections.granted, dict.fromkeys(client.dialogue.granted, 1))
        self._result.handshake.record(client.greeted_us)
        self._result.subscribed.record(client.subscribed_us)
        self.clients[client] = None
        if not client.is_reading:
            self._on_close(client)

    async def _open_socket(self, client: LoadClient) -> None:
        loop = asyncio.get_running_loop()
        host, port = self.state.uri.host, self.state.uri.port
        if not self._addresses:
            self._addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = self._addresses
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                if client.planned.slow:
                    # Must be set before connecting, which negotiates the window.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_RCVBUF_BYTES)
                await loop.sock_connect(sock, address)
                break
            except BaseException as error:
                sock.close()
                if not isinstance(error, OSError) or address == addresses[-1][4]:
                    raise
        # Use the first address that answers for all other connections.
        self._addresses = [(family, kind, protocol, "", address)]
        name = host if self._tls else None
        await loop.create_connection(lambda: client, sock=sock, ssl=self._tls, server_hostname=name)

    def _bases_of(self, symbols: tuple[str, ...]) -> dict[int, int]:
        """Return the streams with a known position that these symbols cover."""
        if not self._bases:
            return {}
        wanted = Coverage(
            Subscription(channel, symbol) for channel in self._plan.channels for symbol in symbols
        )
        return {
            number: seq
            for number, seq in self._bases.items()
            if wanted.covers(StreamKey(DEFAULT_FEED, *self.state.streams.names[number]))
        }

    # -- while it runs

    def pop_second(self) -> Second:
        """Return the figures since the last call; the caller fills in those of the process."""
        second, self.state.second = self.state.second, Second()
        second.connected, second.attempted = len(self.clients), self.attempted
        for client in self.clients:
            second.queue_sum_bytes += client.queue_bytes
            second.queue_max_bytes = max(second.queue_max_bytes, client.queue_bytes)
            second.lag_max_ms = max(second.lag_max_ms, client.lag_ms)
            second.heartbeats += client.heartbeats
        return second

    def start_measuring(self) -> None:
        """Record latencies, and start to replace clients if the plan says so."""
        self.state.timing = True
        if self._plan.churn_per_s:
            self._start_task(self._churn_forever())

    async def _churn_forever(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += self._plan.processes / self._plan.churn_per_s
            await asyncio.sleep(max(0.0, due - loop.time()))
            candidates = [each for each in self.clients if each.planned.churns and each.is_reading]
            if candidates:
                client = self._rng.choice(candidates)
                client.leave()
                self._result.connections.left_by_churn += 1
                self._start_task(self._try_to_connect(client.planned))

    async def _stall_forever(self) -> None:
        """Make each slow client stop and resume reading, all of them out of step."""
        loop = asyncio.get_running_loop()
        period = self._plan.stall_s + self._plan.read_s
        while True:
            for client in [each for each in self.clients if each.planned.slow]:
                phase = (loop.time() + client.planned.number * 0.618 * period) % period
                if phase < self._plan.stall_s and client.is_reading:
                    self._result.connections.stalls += not client.stalled
                    client.stall()
                else:
                    client.resume_reading()
            await asyncio.sleep(_CHECK_S)

    def _on_close(self, client: LoadClient) -> None:
        """Handle the end of a connection, whichever side closed it."""
        self._connected.discard(client)
        if client not in self.clients:
            return
        del self.clients[client]
        self._add_result(client)
        if client.leaving:
            return
        slow, connections = client.planned.slow, self._result.connections
        closes = connections.slow_closes if slow else connections.closes
        add_counts(closes, {str(int(client.close_code)): 1})
        if not (slow and client.close_code in _SLOW_CLOSES):
            self.state.second.problems += 1
        elif self._is_running and not self._is_ending:
            # Reconnect a slow client that the server has closed, as real clients do.
            connections.returned += 1
            self._start_task(self._try_to_connect(client.planned, after_s=_RETURN_S))

    # -- ending

    async def await_ticks(self, ends: StreamPositions, timeout_s: float) -> int:
        """Wait until all ticks up to `ends` have arrived; return how many clients lack some.

        It gives up when nothing has arrived for a while, or after `timeout_s`.
        """
        self._stop_tasks()
        for client in self.clients:
            client.resume_reading()
        numbered = self._numbered(ends)
        loop = asyncio.get_running_loop()
        began = last_arrival = loop.time()
        before = -1
        while True:
            lagging = sum(
                client.checker.lags(self._ends_of(client, numbered))
                for client in self.clients
                if not (client.leaving or client.checker.unnumbered)
            )
            now = loop.time()
            delivered = sum(client.checker.delivered for client in self.clients)
            if delivered != before:
                before, last_arrival = delivered, now
            if not lagging or now - last_arrival > _QUIET_S or now - began > timeout_s:
                return lagging
            await asyncio.sleep(_CHECK_S)

    def _stop_tasks(self) -> None:
        self._is_ending = True
        for task in self._tasks:
            task.cancel()

    def _ends_of(self, client: LoadClient, ends: Mapping[int, int]) -> dict[int, int]:
        """Return the ends that apply to a client: of streams it had on subscribing or has seen."""
        streams = client.bases or client.checker.positions
        return {number: end for number, end in ends.items() if number in streams}

    async def close_all(self, ends: StreamPositions) -> WorkerResult:
        """Close the accounts and then all connections; return the totals."""
        self._stop_tasks()
        numbered = self._numbered(ends)
        clients, self.clients = list(self.clients), {}
        for client in clients:
            if not client.leaving:
                self._close_accounts(client, numbered)
            self._add_result(client)
        for client in list(self._connected):
            client.leave()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CLOSE_TIMEOUT_S
        while self._connected and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for client in list(self._connected):
            client.abort()
        return self._result

    def _close_accounts(self, client: LoadClient, ends: Mapping[int, int]) -> None:
        """Compare the ends of a client that was connected until now."""
        checker, totals = client.checker, self._result.accounts
        if not checker.unnumbered:
            ours = self._ends_of(client, ends)
            checker.close_streams(ours)
            if ours and client.bases:
                # It was connected all the time, so it must account for every tick.
                totals.whole_run_clients += 1
                totals.expected_ticks += sum(end - client.bases[each] for each, end in ours.items())
                totals.accounted_ticks += checker.accounted
        if client.latency_count and not client.planned.slow and (client.bases or not ends):
            mean_us = client.latency_us / client.latency_count
            self._result.client_means_us.append((client.name, mean_us))

    def _add_result(self, client: LoadClient) -> None:
        """Add what a client received and its faults to the totals, once."""
        totals = self._result.accounts
        for name in OUTCOMES:
            setattr(totals, name, getattr(totals, name) + getattr(client.checker, name))
        totals.faults.extend(client.checker.faults[: max(0, _FAULTS_MAX - len(totals.faults))])
