from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed.encoding import Encoding, encode
from feed.errors import InvalidTick
from feed.times import Time
from producers.lines import LineSplitter, parse_line
from tests.builders import bar, quote, trade

NOW = Time(123)


def test_ticks_in_the_form_that_clients_receive() -> None:
    for tick in (trade(id=1, venue="X", side="B"), quote(), bar(timeframe="5s")):
        assert parse_line(encode(tick, Encoding.JSON), NOW) == tick


def test_a_missing_time_is_now_and_what_the_server_added_goes() -> None:
    line = b'{"T":"t","S":"A","p":1,"s":2,"seq":7,"snap":true,"cf":3}'
    assert parse_line(line, NOW) == trade("A", price=1, size=2, time=NOW)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b"[" * 100_000, "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (b"{}", "T must be"),
        (b'{"T":5}', "T must be"),
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
def test_bad_lines_say_what_is_wrong(line: bytes, words: str) -> None:
    with pytest.raises(InvalidTick, match=words):
        parse_line(line, NOW)


@given(st.binary())
def test_any_bytes_are_a_tick_or_an_error_of_ours(line: bytes) -> None:
    with pytest.raises(InvalidTick):
        parse_line(line, NOW)


@given(st.lists(st.binary(max_size=12)), st.integers(1, 20))
def test_lines_come_out_whole_however_they_come_in(lines: list[bytes], size: int) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    data = b"\n".join(lines) + b"\n" if lines else b""
    splitter = LineSplitter(max_bytes=10)
    found = []
    for start in range(0, len(data), size):
        found += list(splitter.feed(data[start : start + size]))
    found += list(splitter.feed(b""))
    assert found == [line if len(line) <= 10 else None for line in lines]


def test_the_last_line_needs_no_line_feed() -> None:
    splitter = LineSplitter(10)
    assert list(splitter.feed(b"a\nb")) == [b"a"]
    assert list(splitter.feed(b"")) == [b"b"]
