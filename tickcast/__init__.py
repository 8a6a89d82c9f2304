"""The library: subscribe to feeds, and publish into them.

In the examples, `URL` is the address of a feed, such as `ws://127.0.0.1:8000/stream`. `connect`
opens a `Stream`, an asynchronous iterator of ticks:

>>> import asyncio
>>> from tickcast import connect
>>> async def first_trades(count):
...     async with connect(URL) as stream:
...         await stream.subscribe(trades=["ES"], start=0)
...         return [await anext(stream) for _ in range(count)]
>>> [trade.price for trade in asyncio.run(first_trades(3))]
[100.0, 101.0, 102.0]

A tick is a `Trade`, a `Quote` or a `Bar`. Its `Time` is exact to the nanosecond.

The client accounts for every tick. `Report` and `StreamReport` count ticks by outcome, and a `Gap`
names ticks that will not arrive. A `Position` is a place in a stream to resume from:

>>> from tickcast import Gap, Position
>>> async def read_all():
...     async with connect(URL, on_gap=print) as stream:
...         await stream.resume({"trades": ["ES"]}, [Position("trades", "ES", "another epoch", 7)])
...         await stream.read()
...         return stream.report()
>>> report = asyncio.run(read_all())
Gap(channel='trades', symbol='ES', first_seq=None, last_seq=None, reason='epoch')
>>> report.balanced, report.streams[0].symbol, report.total("restarts")
(True, 'ES', 1)

`configure` returns the settings as `Configured`. They survive reconnects, and can turn on
`Heartbeat` and `ReplayState` events and `Stamped` ticks. A request that the server rejects raises
`Refused`:

>>> from tickcast import Refused
>>> async def configure():
...     async with connect(URL, on_heartbeat=print, on_replay=print) as stream:
...         print(await stream.configure(stamps=True, slow="skip"))
...         try:
...             await stream.configure(heartbeat_ms=1)
...         except Refused as refused:
...             print(refused.code)
>>> asyncio.run(configure())
Configured(heartbeat_ms=0, stamps=True, slow='skip', conflate_ms=0, replay=False)
400

A `PrivateReplay` plays one of the server's tapes to this program alone. If its connection is lost,
it ends with `ReplayCut`:

>>> async def count_trades():
...     async with connect(URL) as stream:
...         replay = await stream.replay("es-2013-09-01", trades=["ES"], speed="max")
...         return len([tick async for tick in replay])
>>> asyncio.run(count_trades())
100

A `Publisher` publishes ticks. Without `redis="redis://…"` it uses the store that `tickcast serve`
or `tickcast demo` has started. `PublisherStats` counts what happens to each tick:

>>> from tickcast import Publisher, Trade
>>> async def publish():
...     async with Publisher(feed="live") as publisher:
...         await publisher.publish(Trade("AAPL", 187.1, 100))
...     return publisher.stats()
>>> asyncio.run(publish()).published
1

`listen` passes ticks to callbacks, `Window` collects them in tables, and `tickcast.blocking` is for
programs without an event loop. A `TapeLibrary` is a directory of recorded files: a `Tape` reads one
and a `TapeWriter` writes one.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tickcast.broker.publisher import PublisherStats
    from tickcast.client.accounts import Gap, Position, Report, StreamReport
    from tickcast.client.messages import Configured, Heartbeat, Refused
    from tickcast.client.private_replay import PrivateReplay, ReplayCut
    from tickcast.client.stream import Stream, connect, listen
    from tickcast.client.window import Window
    from tickcast.publishing.publisher import Publisher
    from tickcast.tapes import Tape, TapeLibrary, TapeWriter
    from tickcast.wire.encoding import Stamped
    from tickcast.wire.playback import ReplayState as ReplayState
    from tickcast.wire.ticks import Bar, Quote, Trade
    from tickcast.wire.times import Time

_HOMES: Final = {
    "Bar": "tickcast.wire.ticks",
    "Configured": "tickcast.client.messages",
    "Gap": "tickcast.client.accounts",
    "Heartbeat": "tickcast.client.messages",
    "Position": "tickcast.client.accounts",
    "PrivateReplay": "tickcast.client.private_replay",
    "Publisher": "tickcast.publishing.publisher",
    "PublisherStats": "tickcast.broker.publisher",
    "Quote": "tickcast.wire.ticks",
    "Refused": "tickcast.client.messages",
    "ReplayCut": "tickcast.client.private_replay",
    "ReplayState": "tickcast.wire.playback",
    "Report": "tickcast.client.accounts",
    "Stamped": "tickcast.wire.encoding",
    "Stream": "tickcast.client.stream",
    "StreamReport": "tickcast.client.accounts",
    "Tape": "tickcast.tapes",
    "TapeLibrary": "tickcast.tapes",
    "TapeWriter": "tickcast.tapes",
    "Time": "tickcast.wire.times",
    "Trade": "tickcast.wire.ticks",
    "Window": "tickcast.client.window",
    "connect": "tickcast.client.stream",
    "listen": "tickcast.client.stream",
}

__all__ = [
    "Bar", "Configured", "Gap", "Heartbeat", "Position", "PrivateReplay", "Publisher",
    "PublisherStats", "Quote", "Refused", "ReplayCut", "ReplayState", "Report", "Stamped", "Stream",
    "StreamReport", "Tape", "TapeLibrary", "TapeWriter", "Time", "Trade", "Window", "connect",
    "listen",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562).

    Each command needs a part of the library only, and the client imports websockets and more.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
