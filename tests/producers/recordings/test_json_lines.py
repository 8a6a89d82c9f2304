from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.recordings.files import LineSplitter, Utf8Converter
from producers.recordings.json_lines import parse_json
from tests.builders import bar, quote, trade
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import InvalidTick
from tickcast.wire.times import Time

NOW = Time(123)


def test_ticks_in_the_form_that_clients_receive() -> None:
    for tick in (trade(id=1, venue="X", side="B"), quote(), bar(timeframe="5s")):
        assert parse_json(encode(tick, Encoding.JSON), NOW) == [tick]


def test_a_missing_time_is_now_and_server_fields_are_removed() -> None:
    line = b'{"T":"t","S":"A","p":1,"s":2,"seq":7,"snap":true,"cf":3}'
    assert parse_json(line, NOW) == [trade("A", price=1, size=2, time=NOW)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"[", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b"[" * 100_000, "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (b"{}", "T must be"),
        (b'{"T":5}', "T must be"),
        (b'{"T":{}}', "T must be"),
        (b'{"T":"t","S":"A","p":1}', "missing required field `s`"),
        (b'{"T":"t","S":"A","p":1,"s":1,"price":2}', "unknown field 'price'"),
        (b'{"T":"t","S":"A","p":"1","s":1}', "Expected `float`, got `str`"),
        (b'{"T":"t","S":"A","p":1,"s":-1}', "s must be"),
        (b'{"T":"t","S":"A B","p":1,"s":1}', "symbol"),
        (
            b'{"T":"b","S":"A","o":1,"h":1,"l":1,"c":1,"v":1,"vw":1,"n":9223372036854775808}',
            "n must fit 64 bits",
        ),
        (b'{"T":"t","S":"A","p":1e999,"s":1}', "JSON"),
        (b'{"T":"t","S":"A","p":1,"s":1,"t":"noon"}', "RFC 3339"),
    ],
)
def test_errors_of_bad_lines(line: bytes, message: str) -> None:
    with pytest.raises(InvalidTick, match=message):
        parse_json(line, NOW)


@given(st.binary())
def test_any_bytes_are_a_tick_or_an_error_of_ours(line: bytes) -> None:
    with pytest.raises(InvalidTick):
        parse_json(line, NOW)


@given(st.lists(st.binary(max_size=12)), st.integers(1, 20))
def test_lines_are_whole_however_the_data_arrives(lines: list[bytes], size: int) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    data = b"\n".join(lines) + b"\n" if lines else b""
    splitter = LineSplitter(10)
    found = []
    for start in range(0, len(data), size):
        found += list(splitter.split(data[start : start + size]))
    found += list(splitter.split(b""))
    assert found == [line if len(line) <= 10 else None for line in lines]


def test_the_last_line_needs_no_line_feed() -> None:
    splitter = LineSplitter(10)
    assert list(splitter.split(b"a\nb")) == [b"a"]
    assert list(splitter.split(b"")) == [b"b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1704205800", 1704205800 * 10**9),
        ("1704205800123", 1704205800123 * 10**6),
        ("1704205800123456789", 1704205800123456789),
        ("1704205800.123456789", 1704205800123456789),
        ("1.7042058e9", 1704205800 * 10**9),
        ('"1704205800123"', 1704205800123 * 10**6),
        ('"2024-01-02 14:30:00.5+00"', 1704205800500000000),
        ('"2024-01-02T14:30:00.123456789Z"', 1704205800123456789),
        ('"1970-01-01T00:00:00Z"', 0),
    ],
)
def test_times_keep_all_their_digits(text: str, expected: int) -> None:
    line = b'{"T":"t","S":"A","p":1,"s":2,"t":%b}' % text.encode()
    for content in (line, b"[%b]" % line, b"\xef\xbb\xbf" + line):
        (tick,) = parse_json(content, NOW)
        assert tick.time == expected


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "1704205", "20240102", "202401021430", "34201.5", "1e99", "true", "null", "[]",
     '""', '"20240102"', '"09:30:00"', '"2024-01-02"', "9" * 30, '"\\u00b2"'],
)  # fmt: skip
def test_invalid_times_are_refused(text: str) -> None:
    with pytest.raises(InvalidTick):
        parse_json(b'{"T":"t","S":"A","p":1,"s":2,"t":%b}' % text.encode(), NOW)


def test_arrays_and_other_messages_of_a_server() -> None:
    one = trade(id=1)
    assert parse_json(encode([one, quote()], Encoding.JSON), NOW) == [one, quote()]
    assert parse_json(b'[{"T":"subscription","trades":["A"]},{"T":"gap"}]', NOW) == []
    assert parse_json(b"[]", NOW) == []
    left_out: set[str] = set()
    (tick,) = parse_json(
        b'{"T":"q","S":"A","bp":1,"bs":2,"ap":3,"as":4,"c":["R"],"z":"C","tr":1,"tw":2}',
        NOW,
        left_out,
    )
    assert (tick.symbol, left_out) == ("A", {"c", "z"})
    with pytest.raises(InvalidTick, match="number 2 of 2: T must be"):
        parse_json(b'[{"T":"gap"},{"T":"x"}]', NOW)
    with pytest.raises(InvalidTick, match="no time t"):
        parse_json(b'{"T":"t","S":"A","p":1,"s":2}', None)


@settings(max_examples=50)
@given(
    st.text(max_size=20), st.sampled_from(["utf-16", "utf-16-le", "utf-16-be"]), st.integers(1, 9)
)
def test_utf_16_becomes_utf_8_however_the_data_arrives(text: str, encoding: str, size: int) -> None:
    text = '{"T' + text
    data = text.encode(encoding)
    converter = Utf8Converter()
    found = b"".join(converter.convert(data[n : n + size]) for n in range(0, len(data), size))
    assert found + converter.convert(b"") == text.encode()


def test_invalid_utf_16_is_refused() -> None:
    with pytest.raises(InvalidTick, match="not UTF-16"):
        Utf8Converter().convert(b"\xff\xfe\x00\xd8\x00\x00") + Utf8Converter().convert(b"")


@given(st.binary())
def test_other_bytes_stay_as_they_are(data: bytes) -> None:
    converter = Utf8Converter()
    data = b"{" + data.replace(b"\0", b"")
    assert converter.convert(data) + converter.convert(b"") == data
