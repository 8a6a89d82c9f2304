"""Running commands: the event loop, the store, and reports on stderr."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import click
import uvloop
from redis.asyncio import Redis

from tickcast import logs
from tickcast.broker.client import check_version, make_client
from tickcast.broker.embedded import find_store
from tickcast.broker.preflight import preflight
from tickcast.broker.publish_buffer import DroppedTicks
from tickcast.broker.publisher import FeedPublisher
from tickcast.commands.standard_streams import logged_on_stderr
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait, stop_signals
from tickcast.wire.errors import BrokerUnavailable, BrokerUntrusted, InvalidTick, TickcastError
from tickcast.wire.ticks import StreamKey

Result = TypeVar("Result")
# Further dropped streams and bad lines are only counted.
_STREAMS_SHOWN: Final = 20
_BAD_LINES_SHOWN: Final = 20


def set_up_logging(settings: Settings) -> None:
    """Log to stderr, one line per event."""
    logs.set_up(settings.log_level, settings.log_format)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine. A signal to stop cancels it, so that it can clean up."""

    async def cancellable() -> Result:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        stopping: set[asyncio.Task[None]] = set()

        def stop() -> None:
            stopping.add(loop.create_task(cancel_and_wait([task])))

        numbers = stop_signals()
        for number in numbers:
            loop.add_signal_handler(number, stop)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(cancellable())


@asynccontextmanager
async def open_client(settings: Settings) -> AsyncIterator[Redis]:
    """Open a client for the configured store, or for the running embedded store.

    Raises:
        StoreUnavailable, BrokerUnavailable, BrokerUnsuitable: there is no usable store.
    """
    client = make_client(await find_store(settings))
    try:
        await check_version(client)
        yield client
    finally:
        await client.aclose()


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
            error.add_note(_account(publisher))
        raise
    except asyncio.CancelledError:
        _fail_if_lossy(publisher)
        raise
    finally:
        await client.aclose()
    _fail_if_lossy(publisher)


def _fail_if_lossy(publisher: FeedPublisher) -> None:
    if publisher.dropped_ticks or publisher.in_doubt:
        _show_dropped(publisher.dropped)
        raise TickcastError(_account(publisher))


def _account(publisher: FeedPublisher) -> str:
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


def run_server_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a server, which handles signals itself once it has started."""
    handlers = {number: signal.getsignal(number) for number in stop_signals()}
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                return runner.run(work)
            finally:
                # A signal while the loop closes next would make its threads print a traceback.
                for number in handlers:
                    signal.signal(number, signal.SIG_IGN)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


async def refuse_unsuitable(redis_url: str, feeds: Sequence[str] = ()) -> None:
    """Check that a Redis can be used. One that does not answer yet is accepted.

    Raises:
        BrokerUnsuitable: Redis is too old, or rejects the credentials.
        BrokerUntrusted: its certificate is not trusted.
        AccessDenied: the user lacks a permission that a server needs for these feeds.
    """
    client = make_client(redis_url)
    try:
        await check_version(client)
        await preflight(client, feeds)
    except BrokerUntrusted:
        raise
    except BrokerUnavailable:
        pass
    finally:
        await client.aclose()


def counted(number: int, what: str) -> str:
    """Format a number of things for display.

    >>> counted(1, "tick"), counted(2000, "tick")
    ('1 tick', '2,000 ticks')
    """
    return f"{number:,} {what}{'s'[: number != 1]}"


class BadLines:
    """Reports bad lines of input, and remembers whether there were any.

    Args:
        strict: stop at the first bad line.
    """

    def __init__(self, source: str, strict: bool) -> None:
        self.source = source
        self._strict = strict
        self.count = 0

    def report(self, line: int, error: str) -> None:
        """Report a bad line on stderr.

        Raises:
            InvalidTick: in strict mode.
        """
        self.count += 1
        message = f"{self.source}, line {line}: {error}"
        if self._strict:
            raise InvalidTick(message)
        if self.count <= _BAD_LINES_SHOWN:
            click.echo(f"tickcast: {message}", err=True)
        elif self.count == _BAD_LINES_SHOWN + 1:
            click.echo("tickcast: further bad lines are only counted", err=True)

    def fail_if_any(self, good: int) -> None:
        """Exit with code 1 if there were bad lines."""
        if self.count:
            raise InvalidTick(
                f"{self.source}: {counted(self.count, 'bad line')} left out,"
                f" {counted(good, 'tick')} published"
            )
