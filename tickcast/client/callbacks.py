"""Pass ticks to callbacks, for event-driven programs."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tickcast.client.private_replay import PrivateReplay
from tickcast.client.stream import Stream
from tickcast.wire.ticks import Bar, Quote, Trade

T = TypeVar("T")
Handler = Callable[[T], Awaitable[None] | None]
"""Takes a tick. If it returns an awaitable, that is awaited before the next tick."""


async def listen(
    stream: Stream | PrivateReplay,
    *,
    on_trade: Handler[Trade] | None = None,
    on_quote: Handler[Quote] | None = None,
    on_bar: Handler[Bar] | None = None,
) -> None:
    """Call a function with each tick, one at a time and in order, until the stream ends.

    A slow function makes a slow client: see `slow` of `Stream.subscribe`. Exceptions from the
    functions and from iterating over the stream propagate to the caller. For events other than
    ticks, pass `on_gap`, `on_replay` or `on_heartbeat` to `connect`.

    >>> import asyncio
    >>> from clients import connect
    >>> async def main():
    ...     async with connect(URL) as stream:
    ...         replay = await stream.replay("es-2013-09-01", trades=["ES"], speed="max")
    ...         prices = []
    ...         await listen(replay, on_trade=lambda trade: prices.append(trade.price))
    ...         return max(prices)
    >>> asyncio.run(main())
    1640.25
    """
    while ticks := await stream.read():
        for tick in ticks:
            done: Awaitable[None] | None = None
            if isinstance(tick, Trade):
                done = on_trade(tick) if on_trade else None
            elif isinstance(tick, Quote):
                done = on_quote(tick) if on_quote else None
            elif on_bar:
                done = on_bar(tick)
            if inspect.isawaitable(done):
                await done
