"""What the processes of a run tell each other through pipes: MessagePack after its length."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct

from clients.load.plan import Plan

_LENGTH_BYTES: Final = 4
Packed = list[int]
"""A histogram in the form of `Histogram.pack`."""
Streams = list[tuple[str, str, int]]
"""Channel, symbol and `seq` of streams."""


# -- to a worker


class Connect(Struct, tag=True, frozen=True):
    """First of all: open your share of the connections. `bases` says where streams stand."""

    plan: Plan
    process: int
    bases: Streams


class Measure(Struct, tag=True, frozen=True):
    """Everybody is connected: figures count from this moment on, nanoseconds of the wall clock."""

    begin_ns: int


class Settle(Struct, tag=True, frozen=True):
    """Nothing new is published: slow clients read on, nobody leaves, until all is quiet.

    `ends` says where streams stand. `last` marks the final time of asking.
    """

    ends: Streams
    timeout_s: float
    last: bool


class Finish(Struct, tag=True, frozen=True):
    """Close all connections, and hand in the accounts."""


Order = Connect | Measure | Settle | Finish


# -- from a worker


class Timings(Struct):
    """Durations by what they are counted from; `server` is from the server's write (`tw`)."""

    tick: Packed = msgspec.field(default_factory=list)
    publish: Packed = msgspec.field(default_factory=list)
    server: Packed = msgspec.field(default_factory=list)


class Second(Struct):
    """What one process saw in one second, or less at the end of a phase.

    Attributes:
        number: seconds since figures count; below zero before that.
        span_s: how long it really was.
        reading, slow: latencies of clients that read all the time, and of the others.
        queue_bytes_max, queue_bytes_sum: from the clients' latest heartbeats.
        loop_late_us: how late timers of this process ran, at worst.
        cpu_s: what this process used.
    """

    number: int
    span_s: float = 0.0
    connected: int = 0
    settled: int = 0
    ticks: int = 0
    slow_ticks: int = 0
    merged: int = 0
    frames: int = 0
    bytes: int = 0
    problems: int = 0
    reading: Timings = msgspec.field(default_factory=Timings)
    slow: Timings = msgspec.field(default_factory=Timings)
    queue_bytes_max: int = 0
    queue_bytes_sum: int = 0
    lag_ms_max: float = 0.0
    heartbeats: int = 0
    loop_late_us: int = 0
    cpu_s: float = 0.0


class Ready(Struct, tag=True):
    """All connections of this process are open, or have failed."""

    connected: int


class Settled(Struct, tag=True):
    """All that was published has arrived, or it took too long: then `lagging` clients lack some."""

    lagging: int


class Progress(Struct, tag=True):
    """One second's figures."""

    second: Second


class Failed(Struct, tag=True):
    """This process can't go on; the text is meant for people."""

    text: str


class FaultLine(Struct):
    """One unexplained tick or range of them."""

    client: str
    stream: str
    kind: str
    first_seq: int
    last_seq: int
    detail: str


class Accounts(Struct, tag=True):
    """The end of a process: its clients' accounts, added up.

    Attributes:
        expected: ticks published to the streams of clients that were there the whole time.
        accounted: what those clients can account for; equal to `expected` if all is well.
        closes: closed by the server or cut, by close code, of clients that read all the time.
        slow_closes: the same of slow clients.
        refusals: connections that never got as far as a subscription, by reason.
        errors: error messages of the server, by code and words.
        client_mean_us: mean latency of each reading client, with its name.
    """

    opened: int = 0
    left: int = 0
    returned: int = 0
    clients: int = 0
    whole_clients: int = 0
    expected: int = 0
    accounted: int = 0
    delivered: int = 0
    merged: int = 0
    skipped: int = 0
    gapped: int = 0
    snapshots: int = 0
    unnumbered: int = 0
    missing: int = 0
    repeated: int = 0
    reordered: int = 0
    wrong_notices: int = 0
    undecodable: int = 0
    faults: list[FaultLine] = msgspec.field(default_factory=list)
    closes: dict[str, int] = msgspec.field(default_factory=dict)
    slow_closes: dict[str, int] = msgspec.field(default_factory=dict)
    refusals: dict[str, int] = msgspec.field(default_factory=dict)
    errors: dict[str, int] = msgspec.field(default_factory=dict)
    granted: dict[str, int] = msgspec.field(default_factory=dict)
    handshake: Packed = msgspec.field(default_factory=list)
    subscribed: Packed = msgspec.field(default_factory=list)
    client_mean_us: list[tuple[str, float]] = msgspec.field(default_factory=list)
    stalls: int = 0
    early: int = 0
    rss_bytes: int = 0


News = Ready | Settled | Progress | Failed | Accounts

_ENCODER: Final = msgspec.msgpack.Encoder()
_ORDERS: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order)
_NEWS: Final[msgspec.msgpack.Decoder[News]] = msgspec.msgpack.Decoder(News)


def pack(message: Order | News) -> bytes:
    """A message as it goes through a pipe."""
    data = _ENCODER.encode(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


async def read_order(pipe: asyncio.StreamReader) -> Order:
    """The next order; raises asyncio.IncompleteReadError when the other side is gone."""
    return _ORDERS.decode(await _read(pipe))


async def read_news(pipe: asyncio.StreamReader) -> News:
    """The next news; raises asyncio.IncompleteReadError when the other side is gone."""
    return _NEWS.decode(await _read(pipe))


async def _read(pipe: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await pipe.readexactly(_LENGTH_BYTES), "big")
    return await pipe.readexactly(size)


def add_counts(total: dict[str, int], more: dict[str, int]) -> None:
    """Add counts by name."""
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


def total_of(parts: Iterable[Accounts]) -> Accounts:
    """The accounts of several processes added up; histograms become lists of their packed parts."""
    total = Accounts()
    for part in parts:
        for field in msgspec.structs.fields(Accounts):
            mine, theirs = getattr(total, field.name), getattr(part, field.name)
            if isinstance(mine, dict):
                add_counts(mine, theirs)
            elif isinstance(mine, int):
                setattr(total, field.name, mine + theirs)
            elif field.name not in ("handshake", "subscribed"):
                mine.extend(theirs)
    return total
