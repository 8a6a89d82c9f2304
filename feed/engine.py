"""One server's moving parts, wired together: broker, upstream, hub and flusher."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from feed.access.gate import Gate
from feed.backfill import Backfill
from feed.broker.attempts import Attempts
from feed.broker.client import make_client
from feed.broker.seats import Seats
from feed.broker.store import Store
from feed.door import Door
from feed.flusher import Flusher
from feed.hub import Hub
from feed.private.projector import Projector
from feed.rates import parse_rates
from feed.replays import Replays
from feed.session import Session
from feed.settings import Settings
from feed.tapes import Library
from feed.tasks import end_tasks
from feed.upstream import Upstream

_FIRST_TRY_S: Final = 3.0

logger = logging.getLogger("tickcast")


@dataclass(frozen=True)
class Engine:
    """What the endpoints work with."""

    settings: Settings
    hub: Hub
    upstream: Upstream
    store: Store
    backfill: Backfill
    projector: Projector
    door: Door
    replays: Replays
    sessions: set[Session] = field(default_factory=set)


@asynccontextmanager
async def running_engine(settings: Settings, redis_url: str, gate: Gate) -> AsyncIterator[Engine]:
    """Start everything; it keeps trying when Redis can't be reached.

    Raises:
        InvalidSettings: the URL is none.
    """
    client = make_client(redis_url)
    hub = Hub()
    flusher = Flusher(hub, settings.flush_pace, settings.flush_window_ms / 1000)
    upstream = Upstream(client, hub, settings, flusher.wake)
    backfill = Backfill(upstream.store)
    replays = Replays(client, upstream, hub)
    projector = Projector(
        Library(settings.tapes) if settings.tapes else None,
        settings.replays_per_connection_max,
        settings.replays_max,
    )
    seats = Seats(client)
    door = Door(
        settings, gate, seats, Attempts(client, parse_rates(settings.attempts)), hub.counters,
        lambda: upstream.subscriber.connected,
    )  # fmt: skip
    tasks = [
        asyncio.create_task(upstream.subscriber.run(), name="subscriber"),
        asyncio.create_task(upstream.sweep_forever(), name="sweeper"),
        asyncio.create_task(backfill.run(), name="backfill"),
        asyncio.create_task(replays.keep_up(), name="watch over replays"),
        asyncio.create_task(projector.run(), name="projector"),
        asyncio.create_task(seats.run(), name="counter of connections"),
        asyncio.create_task(door.watch(), name="watch over the keys"),
    ]
    for task in tasks:
        task.add_done_callback(_stop_on_crash)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_TRY_S):
                await upstream.subscriber.wait_for_first_try()
        yield Engine(settings, hub, upstream, upstream.store, backfill, projector, door, replays)
    finally:
        await end_tasks(tasks)
        await upstream.close()
        await seats.leave()
        gate.close()
        await client.aclose()


def _stop_on_crash(task: asyncio.Task[None]) -> None:
    """A server that no longer receives must not look alive."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the %s crashed, stopping", task.get_name(), exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)
