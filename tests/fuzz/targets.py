"""The parsers of what others send or store, and what must hold for whatever bytes they are given.

A check passes in silence, or raises what the parser lets out against its word, or AssertionError.
To add a parser, write its check and add a line to `TARGETS`.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from feed import protocol
from feed.actions import Action, Auth, Configure, Subscribe, Unsubscribe, parse_action
from feed.errors import InvalidAction, InvalidRecording, InvalidTick
from feed.ticks import Encoding, Tick, encode, pack, sort_channels, unpack, validate
from feed.times import Time
from producers.lines import LineSplitter, parse_line
from producers.recordings import CsvRecording, parse_columns, read_time
from tests.builders import bar, quote, trade
from tests.fuzz.seeds import ACTIONS, COLUMNS, CSV, LINES, TIMES

NOW: Final = Time(123)


class Target(NamedTuple):
    """A parser: its name, what checks it, and inputs to begin with, most of which are good."""

    name: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def check_action_text(data: bytes) -> None:
    """A client's text message."""
    _check_action(data.decode("utf-8", "replace"))  # The server closes on other text by itself.


def check_action_bytes(data: bytes) -> None:
    """A client's binary message."""
    _check_action(data)


def _check_action(message: str | bytes) -> None:
    try:
        action = parse_action(message)
    except InvalidAction as error:
        # It is sent back, and a line of it may be logged.
        assert error.detail.isprintable()
        assert len(error.detail) < 600  # Up to 40 characters of theirs, as ASCII.
        for encoding in Encoding:
            encode(protocol.error(error.fault, error.detail, error.id), encoding)
        return
    fields = _say(action)
    for again in (msgspec.json.encode(fields).decode(), msgspec.msgpack.encode(fields)):
        assert _say(parse_action(again)) == fields


def _say(action: Action) -> dict[str, Any]:
    """The message that stands for an action, with all that it says."""
    said: dict[str, Any] = {"action": type(action).__name__.lower().removesuffix("subscriptions")}
    if action.id is not None:
        said["id"] = action.id
    match action:
        case Auth():
            words = {"key": action.key, "secret": action.secret, "token": action.token}
            said |= {name: word for name, word in words.items() if word is not None}
        case Configure():
            given = msgspec.structs.asdict(action)
            del given["id"]
            said |= {n: v for n, v in given.items() if v is not msgspec.UNSET}
        case Subscribe():
            said |= {"snapshot": action.snapshot, "positions": action.positions}
            said |= {n: v for n, v in action.options._asdict().items() if v is not None}
            if action.start is not None:
                said["start"] = int(action.start)
            said["resume"] = [
                {"epoch": epoch, channel: {pattern: seq}}
                for (channel, pattern), (epoch, seq) in sorted(action.resume._said.items())
            ]
    if isinstance(action, Subscribe | Unsubscribe):
        channels = {channel for channel, _ in action.subscriptions} or {"trades"}
        for channel in sort_channels(channels):
            said[channel] = sorted(p for c, p in action.subscriptions if c == channel)
    return said


def check_time_text(data: bytes) -> None:
    """A time as text, as messages and as recordings have it."""
    text = data.decode("utf-8", "replace")
    for read in (Time.parse, read_time):
        with suppress(ValueError):
            _check_time(read(text))


def check_time_wire(data: bytes) -> None:
    """A time as whatever MessagePack can hold, read by either library."""
    for read in (msgpack.unpackb, msgspec.msgpack.decode):
        try:
            value = read(data)
        except Exception:
            continue  # Its own errors are not ours to judge.
        with suppress(ValueError):
            _check_time(Time.from_wire(value))


def _check_time(time: Time) -> None:
    assert -(2**63) <= time < 2**63
    assert Time.parse(time.rfc3339()) == time
    packed = msgspec.msgpack.encode(time.ext())
    assert Time.from_wire(msgpack.unpackb(packed)) == time


def check_line(data: bytes) -> None:
    """A tick as a JSON line."""
    try:
        tick = parse_line(data, NOW)
    except InvalidTick:
        return
    _check_tick(tick)
    assert parse_line(encode(tick, Encoding.JSON), NOW) == tick


def _check_tick(tick: Tick) -> None:
    """It can be published, and sent to every client."""
    validate(tick)
    assert unpack(pack([tick])) == [tick]
    for encoding in Encoding:
        encode([tick], encoding)


def check_splitter(data: bytes) -> None:
    """A stream of lines, cut into pieces of a size that the first byte says."""
    size, data = (data[0] % 20 + 1, data[1:]) if data else (1, b"")
    splitter = LineSplitter(max_bytes=10)
    found: list[bytes | None] = []
    for start in range(0, len(data), size):
        found += splitter.feed(data[start : start + size])
    found += splitter.feed(b"")
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    assert found == [line if len(line) <= 10 else None for line in lines]


def check_csv(data: bytes) -> None:
    """A recording in CSV, plain or compressed, whose rows name their symbols or do not."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        for symbol in (None, "ES"):
            bad: list[tuple[int, str]] = []
            with suppress(InvalidRecording):
                recording = CsvRecording(
                    Path(file.name), symbol, on_bad_row=lambda *row, bad=bad: bad.append(row)
                )
                for tick in recording:
                    _check_tick(tick)
            assert all(line > 1 and words for line, words in bad)


def check_columns(data: bytes) -> None:
    """What `--columns` takes."""
    text = data.decode("utf-8", "replace")
    with suppress(ValueError):
        columns = parse_columns(text)
        assert parse_columns(",".join(f"{what}={name}" for what, name in columns.items()))


_TICKS: Final = tuple(
    encode(tick, Encoding.JSON)
    for tick in (trade(id=1, venue="X", side="B"), quote(bid_venue="Y"), bar(timeframe="5s"))
)
_PACKED_ACTIONS: Final = tuple(
    msgspec.msgpack.encode(msgspec.json.decode(text)) for text in ACTIONS
)
_PACKED_TIMES: Final = tuple(
    msgspec.msgpack.encode(value)
    for value in (0, -1, 2**63, "1970-01-01T00:00:00Z", Time(1).ext(), Time(-1).ext(), 1.5, None)
)

TARGETS: Final = (
    Target("action-text", check_action_text, ACTIONS),
    Target("action-bytes", check_action_bytes, _PACKED_ACTIONS),
    Target("time-text", check_time_text, TIMES),
    Target("time-wire", check_time_wire, _PACKED_TIMES),
    Target("line", check_line, (*_TICKS, *LINES)),
    Target("splitter", check_splitter, (b"\x04a\nbc\n\nd", b"\x01" + b"x" * 12 + b"\ny\n")),
    Target("csv", check_csv, (*CSV, gzip.compress(CSV[0], mtime=0))),
    Target("columns", check_columns, COLUMNS),
)
