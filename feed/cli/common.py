"""What several commands share: options, settings, logging, and the way to run."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from feed.broker.client import check_version, make_client
from feed.broker.embedded import find_store
from feed.broker.publisher import Publisher
from feed.errors import BrokerUnavailable, InvalidTick
from feed.settings import Settings
from feed.tasks import end_tasks
from feed.ticks import DEFAULT_FEED, is_feed_name

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")


def redis_option(command: Command) -> Command:
    """The store to use."""
    return click.option(
        "--redis",
        "redis_url",
        metavar="URL",
        help="redis://, rediss:// or unix://; default: the embedded store.",
    )(command)


def config_option(command: Command) -> Command:
    """A file of settings."""
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML file of settings; the environment and options win over it.",
    )(command)


def feed_option(command: Command) -> Command:
    """The feed to publish into."""
    return click.option(
        "--feed",
        default=DEFAULT_FEED,
        show_default=True,
        callback=_check_feed,
        help="Feed to publish into; /stream serves `live`, /v2/NAME any.",
    )(command)


def _check_feed(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not is_feed_name(value):
        raise click.BadParameter(f"{value!a} is not 1 to 32 characters of a-z 0-9 _ -")
    return value


def set_up_logging(settings: Settings) -> None:
    """Log to stderr, one line an event."""
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    # uvicorn tells at "info" what we tell ourselves.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.root.level))
    logging.getLogger("websockets").setLevel(max(logging.WARNING, logging.root.level))


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run until done. SIGTERM and SIGINT cancel the work, so that it can clean up."""

    async def cancellable() -> Result:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        stopping: set[asyncio.Task[None]] = set()

        def stop() -> None:
            stopping.add(loop.create_task(end_tasks([task])))

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(cancellable())


@asynccontextmanager
async def open_publisher(settings: Settings, feed: str) -> AsyncIterator[Publisher]:
    """A publisher on the configured store, or on the embedded one that runs.

    Raises:
        StoreUnavailable, BrokerUnavailable, BrokerUnsuitable: there is none to be had.
    """
    client = make_client(await find_store(settings))
    try:
        await check_version(client)
        async with Publisher(client, feed, settings) as publisher:
            yield publisher
    finally:
        await client.aclose()


def run_server_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a server, which looks after the signals itself once it has started."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def refuse_unsuitable(redis_url: str) -> None:
    """Say at once that a Redis can't be used; one that does not answer may still come.

    Raises:
        BrokerUnsuitable: too old, or it refuses us.
    """
    client = make_client(redis_url)
    try:
        with suppress(BrokerUnavailable):
            await check_version(client)
    finally:
        await client.aclose()


class BadInput:
    """Reports what is wrong in a stream of lines, and remembers that something was.

    Args:
        strict: stop at the first bad line.
    """

    _SHOWN = 20

    def __init__(self, source: str, strict: bool) -> None:
        self._source = source
        self._strict = strict
        self.count = 0

    def report(self, line: int, error: str) -> None:
        """Say on stderr what is wrong in a line.

        Raises:
            InvalidTick: in strict mode.
        """
        self.count += 1
        message = f"{self._source}, line {line}: {error}"
        if self._strict:
            raise InvalidTick(message)
        if self.count <= self._SHOWN:
            click.echo(f"tickcast: {message}", err=True)
        elif self.count == self._SHOWN + 1:
            click.echo("tickcast: further bad lines are only counted", err=True)

    def fail_if_any(self, good: int) -> None:
        """End with exit code 1 where there were bad lines."""
        if self.count:
            raise InvalidTick(
                f"{self._source}: {self.count} bad lines left out, {good} ticks published"
            )
