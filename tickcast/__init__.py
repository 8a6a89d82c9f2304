"""Client library for subscribing to feeds, and the programs built on it.

In the examples, `URL` is the address of a feed, such as `ws://127.0.0.1:8000/stream`. `connect`
opens a `Stream`, an asynchronous iterator of ticks:

>>> import asyncio
>>> from clients import connect
>>> async def first_trades(count):
...     async with connect(URL) as stream:
...         await stream.subscribe(trades=["ES"], start=0)
...         return [await anext(stream) for _ in range(count)]
>>> [trade.price for trade in asyncio.run(first_trades(3))]
[100.0, 101.0, 102.0]

The client accounts for every tick. `Report` and `StreamReport` count ticks by outcome, and a `Gap`
names ticks that will not arrive. A `Position` is a place in a stream to resume from:

>>> from clients import Gap, Position
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

>>> from clients import Refused
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

`listen` passes ticks to callbacks, `Window` collects them in tables, and `tickcast.blocking` is for
programs without an event loop.
"""

from tickcast.client.accounts import Gap, Position
from tickcast.client.callbacks import listen
from tickcast.client.notices import Configured, Heartbeat
from tickcast.client.private_replay import PrivateReplay, ReplayCut
from tickcast.client.report import Report, StreamReport
from tickcast.client.stamps import Stamped
from tickcast.client.state import Refused
from tickcast.client.stream import Stream, connect
from tickcast.client.window import Window
from tickcast.wire.playback import State as ReplayState

__all__ = [
    "Configured", "Gap", "Heartbeat", "Position", "PrivateReplay", "Refused", "ReplayCut",
    "ReplayState", "Report", "Stamped", "Stream", "StreamReport", "Window", "connect", "listen",
]  # fmt: skip
