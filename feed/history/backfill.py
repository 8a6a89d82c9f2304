"""Send history to all clients that ask for it, without delaying live clients.

All reading and sending of history goes through here in small turns. After each turn, live traffic
gets as much time as the turn took. Clients that need the same history share one read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Final, cast

from feed.history.cache import HistoryCache
from feed.history.client_backfill import ClientBackfill
from feed.history.cursor import HistoryRead
from tickcast.broker.store import READ_TICKS, Store
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import BrokerUnavailable, BrokerUnsuitable, Fault
from tickcast.wire.sequence import History, TimeLocation
from tickcast.wire.times import Instant

_TURN_S: Final = 0.003
_READERS: Final = 4
# The limits of one call to the store. After a short disconnection, most streams lack a few ticks.
# Reading many streams together halves the work for a client that resumes 10,000 streams.
_STREAMS_PER_READ: Final = 32
_TICKS_PER_READ: Final = 2 * READ_TICKS
_LOCATIONS_PER_READ: Final = 50
_CHECK_AGAIN_S: Final = 0.01
_READ_AGAIN_S: Final = 0.25
# Pages are kept for at least this long after their last use, in case other clients need them.
_KEEP_PAGES_S: Final = 5.0

logger = logging.getLogger("tickcast.backfill")


class Backfill:
    """The clients that are behind, the order of their turns, and the reads in progress for them.

    A failure affects only the clients concerned. If Redis refuses a read, or the read raises, it is
    abandoned and the clients that wait for it receive an error. A bug in serving a client ends its
    connection. Reads are retried only while Redis can't be reached.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache = HistoryCache()
        self._clients: set[ClientBackfill] = set()
        # The clients that may have something to send or to read, in order.
        self._turns: deque[ClientBackfill] = deque()
        self._has_turns = asyncio.Event()
        # The reads that clients wait for, including those in progress.
        self._wanted: dict[HistoryRead, list[ClientBackfill]] = {}
        # Those that no reader has started.
        self._unread: deque[HistoryRead] = deque()
        self._readers: set[asyncio.Task[None]] = set()
        self._dropped_pages_s = time.perf_counter()
        # The number of reads that were abandoned.
        self.failed = 0

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def streams(self) -> int:
        """How many streams are still behind, summed over all clients."""
        return sum(len(client.behind) for client in self._clients)

    def serve(self, client: ClientBackfill) -> None:
        """Queue a turn for a client that has fallen behind or is ready to receive again."""
        if client.behind:
            self._clients.add(client)
            self._queue_turn(client)

    def remove(self, client: ClientBackfill) -> None:
        """Remove a client that is gone. Reads that only this client waits for are cancelled."""
        for read in client.reading.values():
            waiting = self._wanted.get(read, [])
            if client in waiting:
                waiting.remove(client)
                if not waiting:
                    del self._wanted[read]
        client.drop_streams(client.behind)
        self._discard(client)

    def _discard(self, client: ClientBackfill) -> None:
        self._clients.discard(client)
        if not self._clients:
            self._cache.clear()

    # -- turns

    async def run(self) -> None:
        """Serve until cancelled."""
        if self._wanted:
            # An earlier run failed while reading.
            self._unread = deque(self._wanted)
            self._start_reader()
        self._has_turns.set()
        try:
            while True:
                await self._has_turns.wait()
                self._has_turns.clear()
                while self._turns:
                    began_s = time.perf_counter()
                    if began_s - self._dropped_pages_s > _KEEP_PAGES_S:
                        self._dropped_pages_s = began_s
                        self._cache.drop_unused()
                    while self._turns and time.perf_counter() - began_s < _TURN_S:
                        self._serve_next()
                    # Live traffic gets as much time as this turn has taken.
                    await asyncio.sleep(time.perf_counter() - began_s)
        finally:
            await cancel_and_wait(self._readers)
            self._readers.clear()

    def _queue_turn(self, client: ClientBackfill) -> None:
        if not client.is_queued and client in self._clients:
            client.is_queued = True
            self._turns.append(client)
            self._has_turns.set()

    def _serve_next(self) -> None:
        client = self._turns.popleft()
        client.is_queued = False
        try:
            for read in client.advance(self._cache, Instant.now()):
                self._request_read(read, client)
        except Exception:
            self._disconnect(client)
            return
        if not client.behind:
            self._discard(client)
        elif client.has_work:
            self._queue_turn(client)
        elif client.is_waiting:
            asyncio.get_running_loop().call_later(_CHECK_AGAIN_S, self._queue_turn, client)

    def _disconnect(self, client: ClientBackfill) -> None:
        """Disconnect a client that can't be served, so that the others are not affected."""
        logger.exception("a bug in serving history to a client, whose connection ends")
        self.remove(client)
        client.fail()

    # -- reads

    def _request_read(self, read: HistoryRead, client: ClientBackfill) -> None:
        if read in self._wanted:
            self._wanted[read].append(client)
            return
        self._wanted[read] = [client]
        self._unread.append(read)
        self._start_reader()

    def _start_reader(self) -> None:
        if len(self._readers) < _READERS:
            self._readers.add(asyncio.get_running_loop().create_task(self._read_all()))

    async def _read_all(self) -> None:
        try:
            while reads := self._next_reads():
                try:
                    await self._read(reads)
                except BrokerUnavailable as error:
                    await self._read_later(reads, error)
                except Exception:
                    await self._read_one_by_one(reads)
        finally:
            # Not in a done callback, which would run one loop turn later. A read requested in
            # between would find four finished readers and start none, and history would stop for
            # everyone.
            self._readers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _next_reads(self) -> list[HistoryRead]:
        """Take reads that can be made together, leaving out those that no client waits for."""
        taken: list[HistoryRead] = []
        locates, limit, ticks = False, 1, 0
        while self._unread and len(taken) < limit:
            read = self._unread[0]
            if read in self._wanted:
                if not taken:
                    locates = read.time is not None
                    limit = _LOCATIONS_PER_READ if locates else _STREAMS_PER_READ
                elif (read.time is not None) != locates:
                    break
                if not locates:
                    ticks += self._expected_ticks(read)
                    if taken and ticks > _TICKS_PER_READ:
                        break
                taken.append(read)
            self._unread.popleft()
        return taken

    def _expected_ticks(self, read: HistoryRead) -> int:
        ticks = self._wanted[read][0].expected_ticks(read)
        return READ_TICKS if ticks is None else min(ticks, READ_TICKS)

    async def _read(self, reads: list[HistoryRead]) -> None:
        times = [(read.key, read.time) for read in reads if read.time is not None]
        if times:
            for read, location in zip(reads, await self._store.locate(times), strict=True):
                self._deliver(read, location)
            return
        histories = await self._store.histories([(read.key, read.after) for read in reads])
        for read, history in zip(reads, histories, strict=True):
            self._cache.put(read.key, history)
            self._deliver(read, history)

    async def _read_later(self, reads: list[HistoryRead], error: BrokerUnavailable) -> None:
        logger.debug("could not read history, trying again: %s", error)
        # Queue them behind the others, so that those are served if only these fail.
        self._unread.extend(reads)
        await asyncio.sleep(_READ_AGAIN_S)

    async def _read_one_by_one(self, reads: list[HistoryRead]) -> None:
        """Repeat reads after a joint one failed, and abandon those that fail again."""
        for read in reads:
            if read not in self._wanted:
                continue  # Its result came before another one failed.
            try:
                await self._read([read])
            except BrokerUnavailable as error:
                await self._read_later([read], error)
            except BrokerUnsuitable as error:
                logger.error("could not read the history of %s: %s", read.key, error)
                self._abandon(read, Fault.BROKER_UNAVAILABLE)
            except Exception:
                logger.exception("could not read the history of %s", read.key)
                self._abandon(read, Fault.INTERNAL_ERROR)

    def _deliver(self, read: HistoryRead, result: History | TimeLocation) -> None:
        for client in self._wanted.pop(read, []):
            try:
                client.finish_read(read, result)
            except Exception:
                self._disconnect(client)
            else:
                self._queue_turn(client)

    def _abandon(self, read: HistoryRead, fault: Fault) -> None:
        self.failed += 1
        for client in self._wanted.pop(read, []):
            try:
                client.skip_history(read, fault)
            except Exception:
                self._disconnect(client)
            else:
                self._queue_turn(client)
