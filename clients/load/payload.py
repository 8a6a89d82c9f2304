"""Summaries of frame payloads, reduced to the few numbers that checks need.

Clients with equal subscriptions get the same bytes. Each distinct payload is therefore decoded
once, and checking it costs each client as little as one comparison per stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack
import msgspec
from msgspec import Raw, Struct

from clients.load.measurements import LatencySample
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import TickcastError
from tickcast.wire.ticks import CHANNELS
from tickcast.wire.times import Time

_SAMPLES_MAX: Final = 2
_CACHE_BYTES: Final = 8 * 1024 * 1024
_SMALL_BYTES: Final = 512
_CHANNEL_OF_TYPE: Final = {"t": "trades", "q": "quotes", "b": "bars"}

# A message other than a tick, as it was sent.
Notice = dict[str, Any]
# Stream number, the `seq` that must precede the run, and the last `seq` of the run.
Run = list[int]


class Undecodable(TickcastError):
    """The payload is not an array of messages."""


class Summary(NamedTuple):
    """A payload that has only ticks."""

    # Contiguous ticks of one stream each, in the order of their first ticks.
    runs: list[Run]
    # Published ticks, without snapshots; those that were merged into them (`cf`); without `seq`.
    ticks: int
    merged: int
    unnumbered: int
    # Stream number and `seq` of each snapshot tick.
    snapshots: list[tuple[int, int]]
    samples: list[LatencySample]
    # The time of the first tick, or 0 if all are snapshots.
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
    """Numbers the streams, because integers are cheaper to store and find than names."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, channel: str, symbol: str) -> int:
        """Return the number of a stream, assigning one if necessary; -1 for an unknown channel."""
        number = self._numbers.get((channel, symbol))
        if number is None:
            if channel not in CHANNELS:
                return -1
            number = self._numbers[channel, symbol] = len(self.names)
            self.names.append((channel, symbol))
        return number


class PayloadReader:
    """Decodes payloads of one encoding, and caches recent ones."""

    def __init__(self, encoding: Encoding, streams: StreamNumbers) -> None:
        messages = list[_Message]
        self._decode: Callable[[bytes], list[_Message]]
        self._decode_any: Callable[[bytes], Any]
        if encoding is Encoding.JSON:
            self._decode = msgspec.json.Decoder(messages).decode
            self._decode_any = msgspec.json.decode
            self._time_ns = _json_time_ns
        else:
            self._decode = msgspec.msgpack.Decoder(messages).decode
            self._decode_any = msgspec.msgpack.decode
            self._time_ns = _msgpack_time_ns
        self._streams = streams
        # By the type, symbol and timeframe of messages.
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._recent: dict[bytes, list[Summary | Notice]] = {}
        self._older: dict[bytes, list[Summary | Notice]] = {}
        self._recent_bytes = 0
        self._turn = 0

    def summarize(self, payload: bytes, shared: bool) -> list[Summary | Notice]:
        """Summarize the ticks of a payload. If it has other messages, their order is kept.

        Args:
            shared: whether another client is likely to get the same bytes. Small payloads always
                count as shared, because a server may send a single tick to all clients.

        Raises:
            Undecodable: the payload is not an array of messages.
        """
        if not shared and len(payload) > _SMALL_BYTES:
            return self._read(payload)
        parts = self._recent.get(payload)
        if parts is None:
            parts = self._recent[payload] = self._older.get(payload) or self._read(payload)
            self._recent_bytes += len(payload)
            if self._recent_bytes > _CACHE_BYTES:
                # Two generations: dropping the older one evicts payloads not seen again.
                self._older, self._recent, self._recent_bytes = self._recent, {}, 0
        return parts

    def _read(self, payload: bytes) -> list[Summary | Notice]:
        try:
            messages = self._decode(payload)
            summary = self._summarize(messages)
            if summary is not None:
                return [summary]
            return [
                self._summarize([message]) or fields
                for message, fields in zip(messages, self._decode_any(payload), strict=True)
            ]
        except (msgspec.MsgspecError, ValueError, TypeError, AttributeError) as error:
            raise Undecodable(f"{type(error).__name__}: {error}") from None

    def _summarize(self, messages: list[_Message]) -> Summary | None:
        """Summarize ticks; return None if there are other messages among them."""
        runs: list[Run] = []
        # The latest run of each stream.
        open_runs: dict[int, Run] = {}
        live: list[_Message] = []
        snapshots: list[tuple[int, int]] = []
        merged = unnumbered = 0
        for message in messages:
            number = self._numbers.get((message.T, message.S, message.tf))
            if number is None:
                number = self._add_stream(message)
                if number < 0:
                    return None
            seq = message.seq
            if message.snap:
                snapshots.append((number, seq or 0))
                continue
            live.append(message)
            if seq is None:
                unnumbered += 1
                continue
            before = seq - 1 - message.cf
            merged += message.cf
            run = open_runs.get(number)
            if run is not None and run[2] == before:
                run[2] = seq
            else:
                open_runs[number] = run = [number, before, seq]
                runs.append(run)
        samples = self._sample(live)
        first_ns = self._time_ns(bytes(live[0].t)) if live else 0
        return Summary(runs, len(live), merged, unnumbered, snapshots, samples, first_ns)

    def _add_stream(self, message: _Message) -> int:
        channel = _CHANNEL_OF_TYPE.get(message.T, "")
        if message.T == "b" and message.tf not in {"", "1m"}:
            channel += f":{message.tf}"
        number = self._streams.number(channel, message.S)
        if number >= 0:
            self._numbers[message.T, message.S, message.tf] = number
        return number

    def _sample(self, ticks: list[_Message]) -> list[LatencySample]:
        """Pick a few evenly spaced ticks, with an offset that changes with every payload."""
        count = len(ticks)
        if not count:
            return []
        stride = -(-count // _SAMPLES_MAX)
        self._turn += 1
        places = range(self._turn % min(stride, count), count, stride)
        weight, remainder = divmod(count, len(places))
        return [
            LatencySample(
                self._time_ns(bytes(tick.t)), weight + (place < remainder), tick.tr, tick.tw
            )
            for place, tick in enumerate(ticks[places.start :: stride])
        ]


def _json_time_ns(raw: bytes) -> int:
    return Time.parse(raw[1:-1].decode())


def _msgpack_time_ns(raw: bytes) -> int:
    # Not msgspec, whose datetimes would lose the nanoseconds.
    return Time.from_wire(msgpack.unpackb(raw))
