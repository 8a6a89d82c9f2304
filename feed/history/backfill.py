"""Send history to clients that ask for it, without delaying live clients.

All reading and sending of history goes through here in small turns. After each turn, live traffic
gets as much time as the turn took. Clients that need the same history share one read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Final, cast

from feed.history.cursor import HistoryRequest
from feed.history.follower import ClientBackfill
from feed.history.pages import HistoryCache
from tickcast.broker.store import PAGE_TICKS, Store
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import BrokerUnavailable, BrokerUnsuitable, Fault
from tickcast.wire.sequence import History, TimeLocation
from tickcast.wire.times import Instant

_TURN_S: Final = 0.003
_READERS: Final = 4
_PAGES_PER_READ: Final = 32
_TICKS_PER_READ: Final = 2 * PAGE_TICKS
"""The approximate maximum of one read. After a short disconnection, most streams lack a few ticks.
Reading many streams together halves the work for a client that resumes 10,000 streams."""
_PLACES_PER_READ: Final = 50
_LOOK_AGAIN_S: Final = 0.01
_READ_AGAIN_S: Final = 0.25
_KEEP_S: Final = 5.0
"""The minimum time that a block is kept after its last use, in case other clients need it."""

logger = logging.getLogger("tickcast.backfill")


class Backfill:
    """The clients that are behind, the order of their turns, and the reads in progress for them.

    A failure affects only the clients concerned. If Redis refuses a read, or the read raises, it is
    abandoned and the clients that wait for it receive an error. A bug in serving a client ends its
    connection. Reads are retried only while Redis can't be reached.

    Attributes:
        failed: how many reads were abandoned.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._blocks = HistoryCache()
        self._followers: set[ClientBackfill] = set()
        self._turns: deque[ClientBackfill] = deque()
        self._asked: dict[HistoryRequest, list[ClientBackfill]] = {}
        self._unread: deque[HistoryRequest] = deque()
        self._readers: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._aged = time.perf_counter()
        self.failed = 0

    def __len__(self) -> int:
        return len(self._followers)

    @property
    def streams(self) -> int:
        """How many streams are still behind, summed over all clients."""
        return sum(len(follower.behind) for follower in self._followers)

    def serve(self, follower: ClientBackfill) -> None:
        """Queue a turn for a client that has fallen behind or is ready to receive again."""
        if follower.behind:
            self._followers.add(follower)
            self._queue(follower)

    def forget(self, follower: ClientBackfill) -> None:
        """Remove a client that is gone. Reads that only this client waits for are cancelled."""
        for request in follower.reading.values():
            waiting = self._asked.get(request, [])
            if follower in waiting:
                waiting.remove(follower)
                if not waiting:
                    del self._asked[request]
        follower.drop(follower.behind)
        self._let_go(follower)

    def _queue(self, follower: ClientBackfill) -> None:
        if not follower.queued and follower in self._followers:
            follower.queued = True
            self._turns.append(follower)
            self._news.set()

    def _let_go(self, follower: ClientBackfill) -> None:
        self._followers.discard(follower)
        if not self._followers:
            self._blocks.clear()

    async def run(self) -> None:
        """Serve until cancelled."""
        if self._asked:
            # An earlier run failed while reading.
            self._unread = deque(self._asked)
            self._start_reader()
        self._news.set()
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._turns:
                    began = time.perf_counter()
                    if began - self._aged > _KEEP_S:
                        self._aged = began
                        self._blocks.age()
                    while self._turns and time.perf_counter() - began < _TURN_S:
                        self._serve_next()
                    await asyncio.sleep(time.perf_counter() - began)
        finally:
            await cancel_and_wait(self._readers)
            self._readers.clear()

    def _serve_next(self) -> None:
        follower = self._turns.popleft()
        follower.queued = False
        try:
            for request in follower.advance(self._blocks, Instant.now()):
                self._ask(request, follower)
        except Exception:
            self._end(follower)
            return
        if not follower.behind:
            self._let_go(follower)
        elif follower.has_work:
            self._queue(follower)
        elif follower.waiting:
            asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._queue, follower)

    # -- reading

    def _ask(self, request: HistoryRequest, follower: ClientBackfill) -> None:
        if request in self._asked:
            self._asked[request].append(follower)
            return
        self._asked[request] = [follower]
        self._unread.append(request)
        self._start_reader()

    def _start_reader(self) -> None:
        if len(self._readers) < _READERS:
            self._readers.add(asyncio.get_running_loop().create_task(self._read_all()))

    async def _read_all(self) -> None:
        try:
            while requests := self._take_alike():
                try:
                    await self._read(requests)
                except BrokerUnavailable as error:
                    logger.debug("could not read history, trying again: %s", error)
                    await self._read_later(requests)
                except Exception:
                    await self._read_apart(requests)
        finally:
            # Not in a done callback, which would run one loop turn later. A request made in between
            # would find four finished readers and start none, and history would stop for everyone.
            self._readers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _read_later(self, requests: list[HistoryRequest]) -> None:
        # Queue them behind the others, so that those are served if only these fail.
        self._unread.extend(requests)
        await asyncio.sleep(_READ_AGAIN_S)

    async def _read_apart(self, requests: list[HistoryRequest]) -> None:
        """Read requests one by one after a joint read failed, and abandon those that fail again."""
        for request in requests:
            if request not in self._asked:
                continue  # It was answered before another one failed.
            try:
                await self._read([request])
            except BrokerUnavailable as error:
                logger.debug("could not read history, trying again: %s", error)
                await self._read_later([request])
            except BrokerUnsuitable as error:
                logger.error("could not read the history of %s: %s", request.key, error)
                self._give_up(request, Fault.BROKER_UNAVAILABLE)
            except Exception:
                logger.exception("could not read the history of %s", request.key)
                self._give_up(request, Fault.INTERNAL_ERROR)

    def _take_alike(self) -> list[HistoryRequest]:
        """Take requests that can be read together, leaving out those that no client waits for."""
        taken: list[HistoryRequest] = []
        is_place, most, ticks = False, 1, 0
        while self._unread and len(taken) < most:
            request = self._unread[0]
            if request in self._asked:
                if not taken:
                    is_place = request.time is not None
                    most = _PLACES_PER_READ if is_place else _PAGES_PER_READ
                elif (request.time is not None) != is_place:
                    break
                if not is_place:
                    ticks += self._expected(request)
                    if taken and ticks > _TICKS_PER_READ:
                        break
                taken.append(request)
            self._unread.popleft()
        return taken

    def _expected(self, request: HistoryRequest) -> int:
        """Estimate how many ticks a page of history will contain."""
        ticks = self._asked[request][0].ticks_after(request)
        return PAGE_TICKS if ticks is None else min(ticks, PAGE_TICKS)

    async def _read(self, requests: list[HistoryRequest]) -> None:
        places = [(each.key, each.time) for each in requests if each.time is not None]
        if places:
            for request, place in zip(requests, await self._store.locate(places), strict=True):
                self._hand_over(request, place)
            return
        pages = await self._store.histories([(each.key, each.after) for each in requests])
        for request, page in zip(requests, pages, strict=True):
            self._blocks.put(request.key, page)
            self._hand_over(request, page)

    def _hand_over(self, request: HistoryRequest, answer: History | TimeLocation) -> None:
        for follower in self._asked.pop(request, []):
            try:
                follower.receive(request, answer)
            except Exception:
                self._end(follower)
            else:
                self._queue(follower)

    def _give_up(self, request: HistoryRequest, fault: Fault) -> None:
        self.failed += 1
        for follower in self._asked.pop(request, []):
            try:
                follower.skip_history(request, fault)
            except Exception:
                self._end(follower)
            else:
                self._queue(follower)

    def _end(self, follower: ClientBackfill) -> None:
        """Disconnect a client that can't be served, so that the others are not affected."""
        logger.exception("a bug in serving the past to a client, whose connection ends")
        self.forget(follower)
        follower.fail()
