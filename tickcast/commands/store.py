"""The store that a command uses: clients and publishers, and reports of lost ticks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import click
from redis.asyncio import Redis

from tickcast.broker.client import check_version, make_client
from tickcast.broker.embedded import find_store
from tickcast.broker.preflight import preflight
from tickcast.broker.publish_buffer import DroppedTicks
from tickcast.broker.publisher import FeedPublisher
from tickcast.commands.running import counted
from tickcast.commands.standard_streams import logged_on_stderr
from tickcast.settings import Settings
from tickcast.wire.errors import BrokerUnavailable, BrokerUntrusted, TickcastError
from tickcast.wire.ticks import StreamKey

# Further streams are only counted.
_STREAMS_SHOWN: Final = 20
# How long a command goes on publishing after a signal to stop.
_FLUSH_S: Final = 2.0


@asynccontextmanager
async def open_client(settings: Settings) -> AsyncIterator[Redis]:
    """Open a client for the configured store, or for the running embedded store.

    Raises StoreUnavailable, BrokerUnavailable or BrokerUnsuitable.
    """
    async with make_client(await find_store(settings)) as client:
        await check_version(client)
        yield client


@asynccontextmanager
async def open_publisher(
    settings: Settings, feed: str, *, waits: bool = False
) -> AsyncIterator[FeedPublisher]:
    """Open a publisher for the configured store, or for the running embedded store.

    Outages are reported on stderr as they happen. Ticks that are not known to be published are
    always reported at the end: as a separate error, or as a note to the error that ended the
    command.

    Args:
        waits: whether the source can wait; see `FeedPublisher`.

    Raises:
        StoreUnavailable, BrokerUnavailable, BrokerUnsuitable: there is no usable store.
        TickcastError: not all ticks are known to be published.
    """
    client = make_client(await find_store(settings))
    publisher = FeedPublisher(client, feed, settings, waits=waits)
    try:
        await check_version(client)
        with logged_on_stderr("tickcast.publisher"):
            async with publisher:
                yield publisher
    except TickcastError as error:
        if publisher.accepted:
            _show_dropped(publisher.dropped)
            error.add_note(_summarize(publisher))
        raise
    except asyncio.CancelledError:
        _fail_if_lossy(publisher)
        raise
    finally:
        await client.aclose()
    _fail_if_lossy(publisher)


async def flush_in_time(publisher: FeedPublisher) -> None:
    """Publish the ticks accepted so far, in spite of the cancellation.

    Ticks that can't be published in time are reported when the publisher closes.
    """
    draining = asyncio.create_task(publisher.flush_or_give_up(_FLUSH_S))
    while not draining.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([draining])
    draining.exception()


def _fail_if_lossy(publisher: FeedPublisher) -> None:
    if publisher.dropped_ticks or publisher.in_doubt:
        _show_dropped(publisher.dropped)
        raise TickcastError(_summarize(publisher))


def _summarize(publisher: FeedPublisher) -> str:
    """Describe what happened to the ticks that a closed publisher had accepted."""
    return (
        f"accepted {counted(publisher.accepted, 'tick')}: {publisher.published:,} published,"
        f" {publisher.dropped_ticks:,} dropped, {publisher.in_doubt:,} in doubt"
        " (sent, not confirmed)"
    )


def _show_dropped(dropped: Mapping[StreamKey, DroppedTicks]) -> None:
    for key, lost in list(dropped.items())[:_STREAMS_SHOWN]:
        click.echo(
            f"tickcast: dropped {lost.count:,} of {key.channel}/{key.symbol},"
            f" {lost.first.rfc3339()} to {lost.last.rfc3339()}",
            err=True,
        )
    if rest := list(dropped.values())[_STREAMS_SHOWN:]:
        count = sum(lost.count for lost in rest)
        click.echo(f"tickcast: dropped {count:,} of {len(rest):,} more streams", err=True)


async def check_redis(redis_url: str, feeds: Sequence[str] = ()) -> None:
    """Check that a Redis can be used. One that does not answer yet is accepted.

    Raises:
        BrokerUnsuitable: Redis is too old, or rejects the credentials.
        BrokerUntrusted: its certificate is not trusted.
        AccessDenied: the user lacks a permission that a server needs for these feeds.
    """
    async with make_client(redis_url) as client:
        try:
            await check_version(client)
            await preflight(client, feeds)
        except BrokerUntrusted:
            raise
        except BrokerUnavailable:
            pass
