"""Parsers of input from others or from storage, and what must hold for any bytes.

A check returns silently, or raises AssertionError or an exception that the parser must not raise.
To add a parser, write its check and add a line to `TARGETS`.
"""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from feed.access.authenticator import credentials_in
from feed.access.keys import key_id_of, parse_keys
from feed.access.tokens import read_key, verify_token
from producers.recordings.captures import CaptureRecording, is_capture
from producers.recordings.columns import find_header, parse_columns
from producers.recordings.csv import CsvRecording
from producers.recordings.files import LineSplitter
from producers.recordings.formats import StreamParser
from producers.recordings.json_lines import JsonLinesRecording, is_json_lines, parse_json
from producers.recordings.rows import TableFormat
from producers.recordings.timestamps import TimeReader, parse_time
from producers.recordings.values import NumberReader
from producers.venues.registry import VENUES
from tests.builders import bar, quote, trade
from tests.fuzz.seeds import (
    ACTIONS,
    BINANCE,
    CAPTURES,
    COINBASE,
    COLUMNS,
    CREDENTIALS,
    CSV,
    HEADS,
    KEYS,
    KRAKEN,
    LINES,
    MANIFESTS,
    NUMBERS,
    REPLAY_COMMANDS,
    STREAMS,
    TAPES,
    TIME_FORMATS,
    TIMES,
)
from tickcast.broker.replays import parse_command
from tickcast.tapes import Tape, TapeWriter
from tickcast.tapes.editing import cut
from tickcast.tapes.format import compress
from tickcast.tapes.manifest import decode_manifest, encode_manifest
from tickcast.tapes.verify import verify
from tickcast.venues import TickFrame
from tickcast.wire import messages as protocol
from tickcast.wire.actions import (
    Action,
    Auth,
    BearerToken,
    Configure,
    KeyAndSecret,
    Subscribe,
    Unsubscribe,
)
from tickcast.wire.encoding import Encoding, encode, pack, unpack
from tickcast.wire.errors import (
    AuthFailed,
    BadFrame,
    InvalidAction,
    InvalidRecording,
    InvalidSettings,
    InvalidTape,
    InvalidTick,
    ReplayFailed,
)
from tickcast.wire.parsing import parse_action
from tickcast.wire.ticks import Tick, sort_channels, validate
from tickcast.wire.times import Time

NOW: Final = Time(123)


class Target(NamedTuple):
    """A parser: its name, its check, and inputs to begin with, most of which are valid."""

    name: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def check_action_text(data: bytes) -> None:
    """Check a client's text message."""
    _check_action(data.decode("utf-8", "replace"))  # The server itself closes on invalid text.


def check_action_bytes(data: bytes) -> None:
    """Check a client's binary message."""
    _check_action(data)


def _check_action(message: str | bytes) -> None:
    try:
        action = parse_action(message)
    except InvalidAction as error:
        # It is sent to the client, and a line of it may be logged.
        assert error.detail.isprintable()
        assert len(error.detail) < 600  # Up to 40 characters of the client's input, as ASCII.
        for encoding in Encoding:
            encode(protocol.error(error.fault, error.detail, error.id), encoding)
        return
    fields = _say(action)
    for again in (msgspec.json.encode(fields).decode(), msgspec.msgpack.encode(fields)):
        assert _say(parse_action(again)) == fields


def _say(action: Action) -> dict[str, Any]:
    """Return the message for an action, with all of its fields."""
    said: dict[str, Any] = {"action": type(action).__name__.lower().removesuffix("subscriptions")}
    if action.id is not None:
        said["id"] = action.id
    match action:
        case Auth(KeyAndSecret(key, secret)):
            said |= {"key": key, "secret": secret}
        case Auth(BearerToken(token)):
            said["token"] = token
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
                for (channel, pattern), (epoch, seq) in sorted(action.resume._values.items())
            ]
    if isinstance(action, Subscribe | Unsubscribe):
        channels = {channel for channel, _ in action.subscriptions} or {"trades"}
        for channel in sort_channels(channels):
            said[channel] = sorted(p for c, p in action.subscriptions if c == channel)
    return said


def check_time_text(data: bytes) -> None:
    """Check a time as text, as in messages and recordings."""
    text = data.decode("utf-8", "replace")
    for read in (Time.parse, parse_time):
        with suppress(ValueError):
            _check_time(read(text))


def check_time_wire(data: bytes) -> None:
    """Check a time as any value of MessagePack, read by either library."""
    for read in (msgpack.unpackb, msgspec.msgpack.decode):
        try:
            value = read(data)
        except Exception:
            continue  # Errors of the library are out of scope here.
        with suppress(ValueError):
            _check_time(Time.from_wire(value))


def _check_time(time: Time) -> None:
    assert -(2**63) <= time < 2**63
    assert Time.parse(time.rfc3339()) == time
    packed = msgspec.msgpack.encode(time.msgpack_ext())
    assert Time.from_wire(msgpack.unpackb(packed)) == time


def check_command(data: bytes) -> None:
    """Check a command to a replay."""
    with suppress(ReplayFailed):
        command = parse_command(data)
        assert 1 <= len(command.id) <= 64
        assert parse_command(msgspec.json.encode(command)) == command


def check_line(data: bytes) -> None:
    """Check a tick as a JSON line."""
    try:
        ticks = parse_json(data, NOW)
    except InvalidTick:
        return
    for tick in ticks:
        _check_tick(tick)
        assert parse_json(encode(tick, Encoding.JSON), NOW) == [tick]
    assert parse_json(encode(ticks, Encoding.JSON), NOW) == ticks


def _check_tick(tick: Tick) -> None:
    """Check that a tick can be published, and sent to every client."""
    validate(tick)
    assert unpack(pack([tick])) == [tick]
    for encoding in Encoding:
        encode([tick], encoding)


def check_splitter(data: bytes) -> None:
    """Check a stream of lines, cut into pieces whose size is given by the first byte."""
    size, data = (data[0] % 20 + 1, data[1:]) if data else (1, b"")
    splitter = LineSplitter(10)
    found: list[bytes | None] = []
    for start in range(0, len(data), size):
        found += splitter.split(data[start : start + size])
    found += splitter.split(b"")
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    assert found == [line if len(line) <= 10 else None for line in lines]


def check_stream(data: bytes) -> None:
    """Check a stream of JSON or CSV, cut into pieces whose size is given by the first byte."""
    size, data = (data[0] + 1, data[1:]) if data else (1, b"")
    pieces, whole = _parse_pieces(data, size), _parse_pieces(data, len(data) + 1)
    assert pieces is None or whole is None or pieces == whole


def _parse_pieces(data: bytes, size: int) -> list[tuple[type, str]] | None:
    ticks: list[Tick] = []
    bad: list[tuple[int, str]] = []
    parser = StreamParser(
        "ES", {}, lambda *row: bad.append(row), lambda note: None, set(), TableFormat()
    )
    try:
        for start in range(0, len(data), size):
            ticks += parser.parse(data[start : start + size])
        ticks += parser.parse(b"")
    except (InvalidRecording, InvalidTick):
        return None
    for tick in unpack(pack(ticks)):  # Their classes are private ones of the parser.
        _check_tick(tick)
    assert all(line >= 1 and words for line, words in bad)
    return [(type(tick), tick.symbol) for tick in ticks]


def check_csv(data: bytes) -> None:
    """Check a recording in CSV, plain or compressed, with or without symbols in its rows."""
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
            assert all(line >= 1 and words for line, words in bad)


def check_head(data: bytes) -> None:
    """Check the first lines of a CSV file."""
    text = io.StringIO(data.decode("utf-8", "replace"), newline="")
    with suppress(InvalidRecording, csv.Error):
        header = find_header(text.readline, {"time": "1"})
        assert 0 <= header.lines <= len(data)
        assert len(header.delimiter) == 1


def check_time_format(data: bytes) -> None:
    """Check a value of `--time-format`, and a time that is read with it."""
    form, _, text = data.decode("utf-8", "replace").partition("\n")
    with suppress(ValueError):
        reader = TimeReader(form)
        with suppress(ValueError):
            _check_time(reader.parse(text))


def check_number(data: bytes) -> None:
    """Check a price with any decimal mark."""
    text = data.decode("utf-8", "replace")
    for reader in (NumberReader(), NumberReader("."), NumberReader(","), NumberReader(None, 1e-9)):
        for fixed_point in (False, True):
            with suppress(ValueError):
                (price,) = reader.prices([text], "price", fixed_point=fixed_point)
                assert isfinite(price)
                assert text.strip()[:1] in "0123456789.,+-"


def check_json_lines(data: bytes) -> None:
    """Check a recording in JSON lines, plain or compressed."""
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(data)
        bad: list[tuple[int, str]] = []
        with suppress(InvalidRecording):
            for tick in JsonLinesRecording(path, lambda *row: bad.append(row)):
                _check_tick(tick)
            assert is_json_lines(path)
        assert all(line >= 1 and words for line, words in bad)


def check_venue(name: str) -> Callable[[bytes], None]:
    """Check a frame of a venue."""

    def check(data: bytes) -> None:
        with suppress(BadFrame, InvalidTick, ValueError):
            said = VENUES[name].parse(data, NOW)
            if isinstance(said, TickFrame):
                for each in said.ticks:
                    _check_tick(each.tick)
                    assert 0 <= each.number < 2**63

    return check


def check_capture(data: bytes) -> None:
    """Check a file of captured frames, plain or compressed."""
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(data)
        bad: list[tuple[int, str]] = []
        with suppress(InvalidRecording):
            for tick in CaptureRecording(path, lambda *row: bad.append(row)):
                _check_tick(tick)
            assert is_capture(path)
        assert all(line > 1 and words for line, words in bad)


def check_tape(data: bytes) -> None:
    """Check the file of a tape; if it is not one, check its lines."""
    for content in (data, compress(data)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.jsonl.zst"
            path.write_bytes(content)
            with suppress(InvalidTape):
                tape = Tape.open(path)
                for tick in tape.read():
                    _check_tick(tick)
                _check_copy(tape, verify(path).faults)


def _check_copy(tape: Tape, faults: list[str]) -> None:
    """Check that a copy of everything has the same content and no new faults."""
    writer = TapeWriter(tape.path.with_name("b.jsonl.zst"), tape.manifest.feed)
    cut(tape, writer)
    writer.close()
    verdict = verify(writer.path)
    assert verdict.manifest.content == tape.manifest.content
    assert faults or not verdict.faults
    manifest = Tape.open(writer.path).manifest
    assert decode_manifest(encode_manifest(manifest)) == manifest


def check_manifest(data: bytes) -> None:
    """Check the manifest of a tape."""
    with suppress(InvalidTape):
        manifest = decode_manifest(data)
        assert decode_manifest(encode_manifest(manifest)) == manifest


def check_columns(data: bytes) -> None:
    """Check a value of `--columns`."""
    text = data.decode("utf-8", "replace")
    with suppress(ValueError):
        columns = parse_columns(text)
        assert parse_columns(",".join(f"{what}={name}" for what, name in columns.items()))


def check_credentials(data: bytes) -> None:
    """Check the headers of a handshake, one per line, and a bearer's credentials."""
    headers = [(name.lower(), value) for name, _, value in map(_cut, data.split(b"\n"))]
    with suppress(AuthFailed):
        credentials = credentials_in(headers)
        if isinstance(credentials, BearerToken):
            key_id_of(credentials.text)
    with suppress(AuthFailed):
        verify_token(data.decode("latin-1"), _TOKEN_KEY)


def _cut(line: bytes) -> tuple[bytes, bytes, bytes]:
    return line.partition(b":")


def check_keys(data: bytes) -> None:
    """Check a file of API keys."""
    with suppress(InvalidSettings):
        for key_id in parse_keys(data.decode("utf-8", "replace")):
            assert isinstance(key_id, str)


_TOKEN_KEY: Final = read_key(b"0123456789abcdef0123456789abcdef")
_TICKS: Final = tuple(
    encode(tick, Encoding.JSON)
    for tick in (trade(id=1, venue="X", side="B"), quote(bid_venue="Y"), bar(timeframe="5s"))
)
_PACKED_ACTIONS: Final = tuple(
    msgspec.msgpack.encode(msgspec.json.decode(text)) for text in ACTIONS
)
_PACKED_TIMES: Final = tuple(
    msgspec.msgpack.encode(value)
    for value in (
        0,
        -1,
        2**63,
        "1970-01-01T00:00:00Z",
        Time(1).msgpack_ext(),
        Time(-1).msgpack_ext(),
        1.5,
        None,
    )
)

TARGETS: Final = (
    Target("action-text", check_action_text, ACTIONS),
    Target("action-bytes", check_action_bytes, _PACKED_ACTIONS),
    Target("time-text", check_time_text, TIMES),
    Target("time-wire", check_time_wire, _PACKED_TIMES),
    Target("command", check_command, REPLAY_COMMANDS),
    Target("line", check_line, (*_TICKS, *LINES)),
    Target("stream", check_stream, STREAMS),
    Target("splitter", check_splitter, (b"\x04a\nbc\n\nd", b"\x01" + b"x" * 12 + b"\ny\n")),
    Target("csv", check_csv, (*CSV, gzip.compress(CSV[0], mtime=0))),
    Target("head", check_head, HEADS),
    Target("time-format", check_time_format, TIME_FORMATS),
    Target("number", check_number, NUMBERS),
    Target("json-lines", check_json_lines, (b"\n".join(_TICKS), *LINES)),
    Target("coinbase", check_venue("coinbase"), COINBASE),
    Target("kraken", check_venue("kraken"), KRAKEN),
    Target("binance", check_venue("binance"), BINANCE),
    Target("capture", check_capture, (*CAPTURES, gzip.compress(CAPTURES[0], mtime=0))),
    Target("columns", check_columns, COLUMNS),
    Target("tape", check_tape, (*TAPES, compress(TAPES[0]))),
    Target("manifest", check_manifest, MANIFESTS),
    Target("credentials", check_credentials, CREDENTIALS),
    Target("keys", check_keys, KEYS),
)
