"""Summaries of frame payloads, reduced to the few numbers that checks need.

Clients with equal subscriptions get the same bytes. Each distinct payload is therefore decoded
once, and checking it costs each client as little as one comparison per stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import TickcastError
from tickcast.wire.times import NS_PER_SECOND, Time

SAMPLES_MAX: Final = 2
"""Maximum number of ticks to sample for latency per payload, each with an equal weight."""
_CACHE_BYTES: Final = 8 * 1024 * 1024
_SMALL_BYTES: Final = 512
_CHANNELS: Final = {"t": "trades", "q": "quotes", "b": "bars"}

Notice = dict[str, Any]
"""A message other than a tick, as it was sent."""
Run = list[int]
"""Stream number, the `seq` that must precede the run, and the last `seq` of the run."""


class Undecodable(TickcastError):
    """The payload is not an array of messages."""


class LatencySample(NamedTuple):
    """Times of one tick, and how many ticks it represents. `tr_us` and `tw_us` are 0 if absent."""

    t_ns: int
    weight: int
    tr_us: int
    tw_us: int


class Summary(NamedTuple):
    """A payload that has only ticks.

    Attributes:
        runs: contiguous ticks of one stream each, in the order of their first ticks.
        ticks: the number of published ticks, without snapshots.
        merged: the number of ticks that were merged into these (`cf`).
        unnumbered: the number of ticks without `seq`.
        snapshots: stream number and `seq` of each snapshot tick.
        first_ns: the time of the first tick, or 0 if all are snapshots.
    """

    runs: list[Run]
    ticks: int
    merged: int
    unnumbered: int
    snapshots: tuple[tuple[int, int], ...]
    samples: tuple[LatencySample, ...]
    first_ns: int


class _Message(Struct, gc=False):
    """The fields of a tick that are needed here; only the type of any other message."""

    T: str
    S: str = ""
    seq: int | None = None
    cf: int = 0
    snap: bool = False
    tf: str = ""
    t: Raw = Raw(b"")
    tr: int = 0
    tw: int = 0


class StreamNumbers:
    """Numbers the streams, to make storing and finding positions cheap."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, int]] = {kind: {} for kind in "tq"}
        self._bars: dict[str, dict[str, int]] = {}
        self.names: list[tuple[str, str]] = []

    def table(self, kind: str, timeframe: str) -> dict[str, int] | None:
        """Return the numbers by symbol for a message type `T`, or None if it is not a tick's."""
        if kind == "b":
            return self._bars.setdefault(timeframe or "1m", {})
        return self.tables.get(kind)

    def number(self, channel: str, symbol: str) -> int:
        """Return the number of a stream, assigning one if necessary."""
        kind = channel[0]
        table = self.table(kind, channel.partition(":")[2])
        if table is None:
            return -1
        number = table.get(symbol)
        if number is None:
            number = table[symbol] = len(self.names)
            self.names.append((channel, symbol))
        return number

    def name(self, number: int) -> str:
        """Return the display name of a stream: `trades AAPL`."""
        return " ".join(self.names[number])


class PayloadReader:
    """Decodes payloads of one encoding, and caches recent ones."""

    def __init__(self, encoding: Encoding, streams: StreamNumbers) -> None:
        kind = list[_Message]
        is_json = encoding is Encoding.JSON
        self._decode: Callable[[bytes], list[_Message]] = (
            msgspec.json.Decoder(kind).decode if is_json else msgspec.msgpack.Decoder(kind).decode
        )
        self._decode_any: Callable[[bytes], Any] = (
            msgspec.json.decode if is_json else msgspec.msgpack.decode
        )
        self._time_of = _json_time_ns if is_json else _msgpack_time_ns
        self._streams = streams
        self._young: dict[bytes, Summary] = {}
        self._old: dict[bytes, Summary] = {}
        self._young_bytes = 0
        self._turn = 0
        self.decoded = 0

    def read(self, payload: bytes, shared: bool) -> Summary | list[Summary | Notice]:
        """Decode a payload; return a list if it has messages other than ticks.

        Args:
            shared: whether another client is likely to get the same bytes. Small payloads always
                count as shared, because a server may send a single tick to all clients.

        Raises:
            Undecodable: the payload is not an array of messages.
        """
        if not shared and len(payload) > _SMALL_BYTES:
            return self._read(payload)
        found = self._young.get(payload)
        if found is None:
            found = self._old.get(payload)
            if found is None:
                fresh = self._read(payload)
                if isinstance(fresh, list):
                    return fresh
                found = fresh
            self._remember(payload, found)
        return found

    def _remember(self, payload: bytes, summary: Summary) -> None:
        """Cache in two generations: dropping the older one evicts payloads not seen again."""
        self._young[payload] = summary
        self._young_bytes += len(payload)
        if self._young_bytes > _CACHE_BYTES:
            self._old, self._young, self._young_bytes = self._young, {}, 0

    def _read(self, payload: bytes) -> Summary | list[Summary | Notice]:
        self.decoded += 1
        try:
            messages = self._decode(payload)
            summary = self._summarise(messages)
            return self._read_mixed(payload, messages) if summary is None else summary
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Undecodable(f"{type(error).__name__}: {error}") from None

    def _read_mixed(self, payload: bytes, messages: list[_Message]) -> list[Summary | Notice]:
        parts: list[Summary | Notice] = []
        for message, fields in zip(messages, self._decode_any(payload), strict=True):
            summary = self._summarise([message])
            parts.append(fields if summary is None else summary)
        return parts

    def _summarise(self, messages: list[_Message]) -> Summary | None:
        """Summarize ticks; return None if there are other messages among them."""
        runs: list[Run] = []
        open_runs: dict[int, Run] = {}
        tables = self._streams.tables
        live: list[_Message] = []
        snapshots: list[tuple[int, int]] = []
        merged = unnumbered = 0
        for message in messages:
            table = tables.get(message.T)
            if table is None:
                table = self._streams.table(message.T, message.tf)
                if table is None:
                    return None
            number = table.get(message.S)
            if number is None:
                number = self._streams.number(_channel(message), message.S)
            seq = message.seq
            if message.snap:
                snapshots.append((number, seq or 0))
                continue
            live.append(message)
            if seq is None:
                unnumbered += 1
                continue
            before = seq - 1
            if message.cf:
                before -= message.cf
                merged += message.cf
            run = open_runs.get(number)
            if run is not None and run[2] == before:
                run[2] = seq
            else:
                open_runs[number] = run = [number, before, seq]
                runs.append(run)
        return Summary(
            runs,
            len(live),
            merged,
            unnumbered,
            tuple(snapshots),
            self._sample(live),
            self._time_of(bytes(live[0].t)) if live else 0,
        )

    def _sample(self, ticks: list[_Message]) -> tuple[LatencySample, ...]:
        """Pick a few evenly spaced ticks, with an offset that changes with every payload."""
        count = len(ticks)
        if not count:
            return ()
        stride = -(-count // SAMPLES_MAX)
        self._turn += 1
        places = range(self._turn % min(stride, count), count, stride)
        weight, more = divmod(count, len(places))
        return tuple(
            LatencySample(
                self._time_of(bytes(ticks[place].t)), weight + (order < more),
                ticks[place].tr, ticks[place].tw,
            )
            for order, place in enumerate(places)
        )  # fmt: skip


def _channel(message: _Message) -> str:
    channel = _CHANNELS[message.T]
    return f"bars:{message.tf}" if message.tf and message.tf != "1m" else channel


_seconds_seen: dict[bytes, int] = {}


def _json_time_ns(raw: bytes) -> int:
    """Parse a JSON time as the server writes it: `"2026-01-05T14:30:00.25Z"` with quotes."""
    whole, fraction = raw[1:20], raw[20:-1]
    seconds = _seconds_seen.get(whole)
    if seconds is None:
        if len(_seconds_seen) > 10_000:
            _seconds_seen.clear()
        seconds = Time.parse(whole.decode()) // NS_PER_SECOND
        _seconds_seen[whole] = seconds
    if not fraction.endswith(b"Z"):
        return int(Time.parse(raw[1:-1].decode()))
    digits = fraction[1:-1]
    return seconds * NS_PER_SECOND + (int(digits.ljust(9, b"0")) if digits else 0)


def _msgpack_time_ns(raw: bytes) -> int:
    """Parse a MessagePack timestamp in any of its three forms, or whole nanoseconds.

    Source: the MessagePack specification, "Timestamp extension type".
    """
    for head, size in ((b"\xd7\xff", 2), (b"\xd6\xff", 2), (b"\xc7\x0c\xff", 3)):
        if raw.startswith(head):
            data = raw[size:]
            value = int.from_bytes(data, "big")
            if len(data) == 4:
                return value * NS_PER_SECOND
            if len(data) == 8:
                return (value & (1 << 34) - 1) * NS_PER_SECOND + (value >> 34)
            seconds = int.from_bytes(data[4:], "big", signed=True)
            return seconds * NS_PER_SECOND + int.from_bytes(data[:4], "big")
    return int(Time.from_wire(msgspec.msgpack.decode(raw)))
