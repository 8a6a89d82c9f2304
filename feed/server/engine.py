"""Create and run the components of one server: broker, upstream, hub, flusher and others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from limits import parse_many

from feed.access.admission import Admission
from feed.access.authenticator import Authenticator
from feed.fanout.hub import Hub
from feed.history.backfill import Backfill
from feed.ingest.live_ticks import Flusher
from feed.ingest.upstream import Upstream
from feed.replay.feed_replays import FeedReplays
from feed.replay.scheduler import ReplayScheduler
from feed.server.listings import SharedBodies
from feed.server.publishing import ClientPublishing
from feed.server.session import Session
from feed.transport.address_limits import AddressLimits
from feed.transport.loop_time import TimeSlices, TurnBudget
from tickcast.broker.client import make_client
from tickcast.broker.limits import ConnectionLimiter, ConnectRateLimiter
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.tapes import TapeLibrary
from tickcast.tasks import BackgroundTasks

_FIRST_TRY_S: Final = 3.0

logger = logging.getLogger("tickcast")


@dataclass(frozen=True)
class Engine:
    """The components that the endpoints use."""

    settings: Settings
    hub: Hub
    upstream: Upstream
    store: Store
    backfill: Backfill
    private_replays: ReplayScheduler
    admission: Admission
    feed_replays: FeedReplays
    tasks: BackgroundTasks
    turn_budget: TurnBudget
    address_limits: AddressLimits
    slices: TimeSlices
    listings: SharedBodies
    publishing: ClientPublishing
    sessions: set[Session] = field(default_factory=set)


@asynccontextmanager
async def running_engine(
    settings: Settings, redis_url: str, authenticator: Authenticator
) -> AsyncIterator[Engine]:
    """Start all components. If Redis can't be reached, they keep trying to connect.

    Raises InvalidSettings if the URL is invalid.
    """
    client = make_client(redis_url)
    hub = Hub()
    slices = TimeSlices()
    hub.groups.defer = partial(slices.start, hub)
    flusher = Flusher(hub, settings.flush_pace, settings.flush_window_ms / 1000)
    upstream = Upstream(client, hub, settings, flusher.wake)
    backfill = Backfill(upstream.store)
    feed_replays = FeedReplays(client, upstream, hub)
    private_replays = ReplayScheduler(
        TapeLibrary(settings.tapes) if settings.tapes else None,
        settings.replays_per_connection_max,
        settings.replays_max,
    )
    connections = ConnectionLimiter(client)
    limits = address_limits(settings)
    admission = Admission(
        settings, authenticator, limits, connections,
        ConnectRateLimiter(client, parse_many(settings.attempts)),
        hub.counters.refused, lambda: upstream.subscriber.connected,
    )  # fmt: skip
    admission.defer = partial(slices.start, admission)
    tasks = BackgroundTasks(logger)
    tasks.supervise("subscriber", upstream.subscriber.run)
    tasks.supervise("sweeper", upstream.sweep_forever)
    tasks.supervise("backfill", backfill.run)
    tasks.supervise("time_slices", slices.serve_forever)
    tasks.supervise("replay_listener", feed_replays.retry_forever)
    tasks.supervise("private_replays", private_replays.play_forever)
    tasks.supervise("connection_counter", connections.report_forever)
    tasks.supervise("key_watcher", admission.watch_keys)
    listings = SharedBodies()
    publishing = ClientPublishing(client, settings)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_TRY_S):
                await upstream.subscriber.wait_for_first_attempt()
        yield Engine(
            settings, hub, upstream, upstream.store, backfill, private_replays, admission,
            feed_replays, tasks, TurnBudget(), limits, slices, listings, publishing,
        )  # fmt: skip
    finally:
        await listings.cancel_builds()
        await publishing.stop()
        await tasks.cancel_all()
        await upstream.stop()
        await connections.withdraw()
        authenticator.shut_down()
        await client.aclose()


def address_limits(settings: Settings) -> AddressLimits:
    """Create the address limits from the settings."""
    return AddressLimits(
        settings.unlimited_addresses,
        settings.trusted_proxies,
        bytes_per_s=settings.address_bytes_per_s,
        requests_per_s=settings.requests_per_s,
        requests_burst=settings.requests_burst,
        connections_max=settings.connections_per_address_max,
        shut_out_s=settings.shut_out_s,
    )
