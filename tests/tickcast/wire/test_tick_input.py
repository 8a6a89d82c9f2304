"""Lists of ticks that other programs send."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcast.wire import tick_input
from tickcast.wire.errors import InvalidTick
from tickcast.wire.tick_input import TickFormat, parse_line, parse_ticks, parse_valid
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

NOW = Time.parse("2026-12-01T12:00:00Z")
TRADE = {"T": "t", "S": "AAPL", "p": 187.1, "s": 100, "t": "2026-01-05T14:30:00.123456789Z"}
QUOTE = {"T": "q", "S": "AAPL", "bp": 187, "bs": 1, "ap": 187.1, "as": 2, "ax": "Q"}
BAR = {"T": "b", "S": "X", "o": 1, "h": 2, "l": 1, "c": 2, "v": 9, "n": 3, "vw": 1.5, "tf": "1s"}


def written(values: Any, form: TickFormat) -> bytes:
    if form is TickFormat.LINES:
        return b"\n".join(json.dumps(each).encode() for each in values)
    if form is TickFormat.JSON:
        return json.dumps(values).encode()
    packed: bytes = msgpack.packb(values)
    return packed


def plain(ticks: list[Tick]) -> list[dict[str, Any]]:
    return [{name: getattr(tick, name) for name in tick.__struct_fields__} for tick in ticks]


@pytest.mark.parametrize("form", TickFormat)
def test_all_kinds_of_ticks_in_all_formats(form: TickFormat) -> None:
    trade, quote, bar = parse_ticks(written([TRADE, QUOTE, BAR], form), form, NOW)
    assert trade.time == Time.parse("2026-01-05T14:30:00.123456789Z")
    assert (quote.time, bar.time) == (NOW, NOW)
    assert [type(each).__bases__[0].__name__ for each in (trade, quote, bar)] == [
        "Trade", "Quote", "Bar",
    ]  # fmt: skip


def test_fields_of_a_server_are_removed() -> None:
    sent = {**TRADE, "seq": 7, "snap": True, "cf": 3, "tr": 1, "tw": 2}
    (tick,) = parse_ticks(written([sent], TickFormat.JSON), TickFormat.JSON, NOW)
    assert (tick.seq, tick.snap, tick.conflated) == (None, False, 0)


def test_msgpack_timestamps_keep_their_nanoseconds() -> None:
    body = msgpack.packb([{**TRADE, "t": msgpack.Timestamp(1767623400, 123456789)}])
    (tick,) = parse_ticks(body, TickFormat.MSGPACK, NOW)
    assert tick.time == 1767623400_123456789


@pytest.mark.parametrize("time", [1767623400, 1767623400.5, 1767623400123456789])
def test_numbers_are_times_in_their_unit(time: float) -> None:
    (tick,) = parse_ticks(written([{**TRADE, "t": time}], TickFormat.JSON), TickFormat.JSON, NOW)
    assert tick.time.rfc3339().startswith("2026-01-05T14:30:00")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([TRADE, {**TRADE, "p": "1"}], r"tick 2 of 2: Expected `float`, got `str` - at `\$\.p`"),
        ([TRADE, {**TRADE, "s": -1}], "tick 2 of 2: s must be a finite number of at least 0"),
        ([{**TRADE, "price": 1}], "tick 1 of 1: unknown field 'price'; known are S, T"),
        ([{**TRADE, "S": "A B"}], "tick 1 of 1: symbol 'A B' is not 1 to 32 characters"),
        ([{**TRADE, "t": "soon"}], "tick 1 of 1: t: 'soon' is not an RFC 3339 time"),
        ([{**TRADE, "T": "x"}], 'tick 1 of 1: T must be "t"'),
        ([[]], "tick 1 of 1: not a JSON object"),
        ({"a": 1}, "not an array of ticks"),
        (7, "not an array of ticks"),
    ],
)
@pytest.mark.parametrize("form", [TickFormat.JSON, TickFormat.MSGPACK])
def test_the_first_bad_tick_is_named(form: TickFormat, values: Any, message: str) -> None:
    with pytest.raises(InvalidTick, match=message):
        parse_ticks(written(values, form), form, NOW)


def test_the_first_bad_line_is_named() -> None:
    body = written([TRADE], TickFormat.LINES) + b"\n\n{]\n"
    with pytest.raises(InvalidTick, match="line 3: not a JSON object"):
        parse_ticks(body, TickFormat.LINES, NOW)


@pytest.mark.parametrize("body", [b"", b"[", b"\xff", b"[" * 200_000, b"\xc1", b"\x91" * 5000])
@pytest.mark.parametrize("form", [TickFormat.JSON, TickFormat.MSGPACK])
def test_garbage_is_refused(form: TickFormat, body: bytes) -> None:
    with pytest.raises(InvalidTick):
        parse_ticks(body, form, NOW)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False),
    st.text(max_size=5), st.sampled_from(["AAPL", "2026-01-05T14:30:00Z", "t", "1s", "B"]),
)  # fmt: skip


@given(
    st.sampled_from([TRADE, QUOTE, BAR]),
    st.dictionaries(
        st.sampled_from([*TRADE, *QUOTE, *BAR, "seq", "snap", "cf", "tr", "c", "new"]),
        VALUES, max_size=3,
    ),
)  # fmt: skip
def test_typed_decoding_agrees_with_the_other_way(
    tick: dict[str, Any], changes: dict[str, Any]
) -> None:
    body = written([{**tick, **changes}], TickFormat.JSON)
    try:
        fast = plain(parse_ticks(body, TickFormat.JSON, NOW))
    except InvalidTick as error:
        with pytest.raises(InvalidTick) as other:
            tick_input._parse_untyped(body, TickFormat.JSON, NOW)
        assert str(error) == str(other.value)
    else:
        assert fast == plain(tick_input._parse_untyped(body, TickFormat.JSON, NOW))


@given(
    st.sampled_from([TRADE, QUOTE, BAR]),
    st.dictionaries(st.sampled_from([*TRADE, *QUOTE, *BAR, "seq", "cf", "c"]), VALUES, max_size=2),
    st.booleans(),
)
def test_lines_that_are_parsed_fast_are_parsed_alike(
    tick: dict[str, Any], changes: dict[str, Any], in_array: bool
) -> None:
    value = {**tick, **changes}
    line = json.dumps([value, tick] if in_array else value).encode()
    fast = parse_valid(line, NOW)
    if fast is not None:
        assert plain(fast) == plain(parse_line(line, NOW))


def test_valid_lines_are_parsed_fast() -> None:
    for content in (TRADE, [QUOTE, BAR], []):
        assert parse_valid(json.dumps(content).encode(), NOW) is not None
