"""Messages between the processes of a run, sent through pipes as length-prefixed MessagePack."""

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
    """The first order: open this process's connections. `bases` are the streams' positions."""

    plan: Plan
    process: int
    bases: Streams


class Measure(Struct, tag=True, frozen=True):
    """All are connected: measure from this time on, in nanoseconds of the wall clock."""

    begin_ns: int


class AwaitTicks(Struct, tag=True, frozen=True):
    """Publishing has stopped: end stalls and churn, and wait for outstanding ticks.

    `ends` are the streams' positions. `last` marks the final order of this kind.
    """

    ends: Streams
    timeout_s: float
    last: bool


class Finish(Struct, tag=True, frozen=True):
    """Close all connections and send the accounts."""


Order = Connect | Measure | AwaitTicks | Finish


# -- from a worker


class Timings(Struct):
    """Durations by their starting point; `server` starts at the server's write (`tw`)."""

    tick: Packed = msgspec.field(default_factory=list)
    publish: Packed = msgspec.field(default_factory=list)
    server: Packed = msgspec.field(default_factory=list)


class Second(Struct):
    """The figures of one process for one second, or less at the end of a phase.

    Attributes:
        number: seconds since the start of the measurement; negative before it.
        span_s: the actual length.
        reading, slow: latencies of clients that always read, and of slow clients.
        queue_bytes_max, queue_bytes_sum: from the clients' latest heartbeats.
        loop_late_us: the maximum delay of this process's timers.
        cpu_s: the CPU time that this process used.
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
    """All connections of this process are open or have failed."""

    connected: int


class TicksArrived(Struct, tag=True):
    """All published ticks have arrived, or after a timeout, `lagging` clients still lack some."""

    lagging: int


class Progress(Struct, tag=True):
    """The figures of one second."""

    second: Second


class Failed(Struct, tag=True):
    """This process can't continue; the text is for the user."""

    text: str


class FaultLine(Struct):
    """One unexplained tick or range of ticks."""

    client: str
    stream: str
    kind: str
    first_seq: int
    last_seq: int
    detail: str


class Accounts(Struct, tag=True):
    """The last message of a process: the totals of its clients' accounts.

    Attributes:
        expected: ticks published to the streams of clients connected the whole time.
        accounted: ticks that those clients accounted for; equal to `expected` if all is well.
        closes: connections closed by the server or cut, by close code, of clients that always
            read.
        slow_closes: the same for slow clients.
        refusals: connections that failed before the subscription, by reason.
        errors: error messages of the server, by code and text.
        client_mean_us: name and mean latency of each client that always reads.
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


News = Ready | TicksArrived | Progress | Failed | Accounts

_ENCODER: Final = msgspec.msgpack.Encoder()
_ORDERS: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order)
_NEWS: Final[msgspec.msgpack.Decoder[News]] = msgspec.msgpack.Decoder(News)


def pack(message: Order | News) -> bytes:
    """Encode a message for a pipe."""
    data = _ENCODER.encode(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


async def read_order(pipe: asyncio.StreamReader) -> Order:
    """Read the next order; raises asyncio.IncompleteReadError if the other side is gone."""
    return _ORDERS.decode(await _read(pipe))


async def read_news(pipe: asyncio.StreamReader) -> News:
    """Read the next news; raises asyncio.IncompleteReadError if the other side is gone."""
    return _NEWS.decode(await _read(pipe))


async def _read(pipe: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await pipe.readexactly(_LENGTH_BYTES), "big")
    return await pipe.readexactly(size)


def add_counts(total: dict[str, int], more: dict[str, int]) -> None:
    """Add counts by name to `total`."""
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


def total_of(parts: Iterable[Accounts]) -> Accounts:
    """Add up the accounts of several processes, without their packed histograms."""
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
