"""Running commands: logging, the event loop, and reports of bad lines."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import click
import uvloop

from tickcast import logs
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait, stop_signals
from tickcast.wire.errors import InvalidTick

Result = TypeVar("Result")
# Further bad lines are only counted.
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


def counted(number: int, noun: str) -> str:
    """Format a number of things for display.

    >>> counted(1, "tick"), counted(2000, "tick")
    ('1 tick', '2,000 ticks')
    """
    return f"{number:,} {noun}{'s'[: number != 1]}"


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
        """Report a bad line on stderr. Raises InvalidTick."""
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
