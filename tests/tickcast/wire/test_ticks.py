from __future__ import annotations

import math
import string
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import T0, bar, quote, trade
from tickcast.wire.encoding import (
    Encoding,
    array_delimiters,
    encode,
    encode_elements,
    pack,
    tick_from_message,
    unpack,
)
from tickcast.wire.errors import InvalidTick
from tickcast.wire.sequence import assign_seqs
from tickcast.wire.subscriptions import Coverage, Subscription, is_pattern
from tickcast.wire.ticks import (
    Quote,
    StreamKey,
    Tick,
    Trade,
    channel_of,
    is_feed_name,
    is_symbol,
    validate,
)
from tickcast.wire.times import Time

FINITE = st.floats(allow_nan=False, allow_infinity=False)
AMOUNTS = st.floats(min_value=0, allow_infinity=False)
TIMES = st.integers(-(2**63), 2**63 - 1).map(Time)
SYMBOLS = st.text(string.ascii_letters + string.digits + "._/:-", min_size=1, max_size=32)
TRADES = st.builds(
    Trade,
    symbol=SYMBOLS,
    id=st.none() | st.integers(-(2**63), 2**63 - 1) | st.text("abc", min_size=1, max_size=8),
    venue=st.none() | st.just("CME"),
    price=FINITE,
    size=AMOUNTS,
    side=st.sampled_from([None, "B", "S"]),
    time=TIMES,
)
QUOTES = st.builds(
    Quote, symbol=SYMBOLS, bid_price=FINITE, bid_size=AMOUNTS, ask_price=FINITE, ask_size=AMOUNTS,
    time=TIMES,
)  # fmt: skip
TICKS: st.SearchStrategy[Tick] = TRADES | QUOTES


def test_fields_come_in_the_order_of_the_protocol() -> None:
    full = trade(id=7, venue="CME", side="B", seq=3)
    assert encode(full, Encoding.JSON) == (
        b'{"T":"t","S":"ES","i":7,"x":"CME","p":1640.25,"s":1,"tks":"B",'
        b'"t":"2013-09-01T17:00:00.083Z","seq":3}'
    )
    full_quote = quote(bid_venue="A", ask_venue="B", seq=1)
    assert list(msgspec.json.decode(encode(full_quote, Encoding.JSON))) == [
        "T", "S", "bx", "bp", "bs", "ax", "ap", "as", "t", "seq",
    ]  # fmt: skip
    assert list(msgspec.json.decode(encode(bar(timeframe="5s", seq=1), Encoding.JSON))) == [
        "T", "S", "o", "h", "l", "c", "v", "n", "vw", "t", "tf", "seq",
    ]  # fmt: skip


def test_unknown_fields_and_the_one_minute_timeframe_are_left_out() -> None:
    assert "i" not in msgspec.json.decode(encode(trade(), Encoding.JSON))
    assert "tf" not in msgspec.json.decode(encode(bar(), Encoding.JSON))


@given(st.lists(TICKS, min_size=1, max_size=5))
def test_both_encodings_carry_the_same_ticks(ticks: list[Tick]) -> None:
    from_json = [
        tick_from_message(each) for each in msgspec.json.decode(encode(ticks, Encoding.JSON))
    ]
    reference = msgpack.unpackb(encode(ticks, Encoding.MSGPACK))
    assert from_json == ticks
    assert [tick_from_message(each) for each in reference] == ticks


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("sizes", [[1], [3, 4], [15, 1], [16, 300], [40_000, 30_000]])
def test_joined_elements_are_the_array_of_all_ticks(sizes: list[int], encoding: Encoding) -> None:
    parts = [[trade(id=n)] * size for n, size in enumerate(sizes)]
    encoded = [encode_elements(part, encoding) for part in parts]
    whole = encode([tick for part in parts for tick in part], encoding)
    before, between, after = array_delimiters(sum(sizes), encoding)
    assert before + between.join(encoded) + after == whole


@given(st.lists(TICKS, min_size=1, max_size=5), st.integers(1, 2**53))
def test_packed_ticks_are_unpacked_and_numbered(ticks: list[Tick], first: int) -> None:
    stored = assign_seqs(unpack(pack(ticks)), first)
    assert [tick.seq for tick in stored] == list(range(first, first + len(ticks)))
    for before, after in zip(ticks, stored, strict=True):
        after.seq = None
        assert after == before


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x91\x80", b"\x81\xa1T\xa1t", b"\xc1", b"[]"])
def test_foreign_bytes_in_the_store_are_an_invalid_tick(data: bytes) -> None:
    with pytest.raises(InvalidTick, match="undecodable"):
        unpack(data)


@given(TICKS)
def test_generated_ticks_are_valid(tick: Tick) -> None:
    validate(tick)


@pytest.mark.parametrize(
    ("tick", "words"),
    [
        (trade(""), "symbol"),
        (trade("A B"), "symbol"),
        (trade("A\n"), "symbol"),
        (trade("A" * 33), "symbol"),
        (trade("Ä"), "symbol"),
        (trade(price=math.nan), "p must be a finite"),
        (trade(price=math.inf), "p must be a finite"),
        (trade(size=-1), "s must be"),
        (trade(size=math.inf), "s must be"),
        (trade(id="x" * 65), "i must have"),
        (trade(id=""), "i must have"),
        (trade(id=2**63), "i must fit"),
        (trade(venue="a\nb"), "x must be printable"),
        (Quote(symbol="A", bid_price=1, bid_size=-1, ask_price=2, ask_size=1, time=T0), "bs must"),
        (Quote(symbol="A", bid_price=1, bid_size=1, ask_price=2, ask_size=-1, time=T0), "as must"),
    ],
)
def test_invalid_ticks_are_refused(tick: Tick, words: str) -> None:
    with pytest.raises(InvalidTick, match=words):
        validate(tick)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"T": "x"},
        {"T": "t", "S": "A", "p": 1, "s": 1},
        {"T": "t", "S": "A", "p": "1", "s": 1, "t": "2020-01-01T00:00:00Z"},
        {"T": "t", "S": "A", "p": 1, "s": 1, "t": "yesterday"},
        {"T": "t", "S": "A", "p": 1, "s": 1, "t": 1, "tks": "X"},
    ],
)
def test_messages_that_are_not_ticks_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidTick):
        tick_from_message(fields)


def test_integers_are_valid_prices_and_unknown_fields_are_ignored() -> None:
    fields = {"T": "t", "S": "A", "p": 1, "s": 2, "t": 5, "new": True}
    assert tick_from_message(fields) == trade("A", price=1.0, size=2.0, time=Time(5))


def test_channels() -> None:
    assert channel_of(trade()) == "trades"
    assert channel_of(quote()) == "quotes"
    assert channel_of(bar()) == "bars"
    assert channel_of(bar(timeframe="5s")) == "bars:5s"


def test_names() -> None:
    assert is_feed_name("live")
    assert not is_feed_name("")
    assert not is_feed_name("Live")
    assert not is_feed_name("a/b")
    assert is_symbol("BRK.B")
    assert is_symbol("BTC/USD")
    assert not is_symbol("*")
    assert is_pattern("*")
    assert is_pattern("BTC-*")
    assert not is_pattern("*A")
    assert not is_pattern("A*B*")
    assert not is_pattern("A?")


def test_coverage_is_by_channel_and_pattern() -> None:
    stream = StreamKey("live", "trades", "BTC-USD")

    def covers(*names: tuple[str, str]) -> bool:
        return Coverage(Subscription(*name) for name in names).covers(stream)

    assert covers(("trades", "BTC-USD"))
    assert covers(("trades", "*"))
    assert covers(("trades", "ETH-*"), ("trades", "BTC-*"))
    assert not covers(("trades", "BTC"))
    assert not covers(("trades", "ETH-*"), ("quotes", "*"), ("quotes", "BTC-USD"))
    assert not covers()
    named = Coverage([Subscription("trades", "BTC-USD")])
    assert not named.has_wildcards
    assert not named.covers_by_wildcard(stream)


def test_the_required_fields_may_be_positional_and_the_time_is_now() -> None:
    before = Time.now()
    trade = Trade("AAPL", 187.1, 100, side="B")
    assert (trade.symbol, trade.price, trade.size, trade.side) == ("AAPL", 187.1, 100, "B")
    assert before <= trade.time <= Time.now()
    quote = Quote("AAPL", 187.0, 3, 187.1, 2, time=Time(7))
    assert (quote.bid_price, quote.bid_size, quote.ask_price, quote.ask_size) == (187, 3, 187.1, 2)
    assert quote.time == Time(7)
    with pytest.raises(TypeError, match=r"Trade\(\) takes 4 positional"):
        Trade("AAPL", 187.1, 100, "B")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="price"):
        Trade("AAPL")  # type: ignore[call-arg]


def test_a_message_without_a_time_is_not_a_tick() -> None:
    with pytest.raises(InvalidTick, match="`t`"):
        tick_from_message({"T": "t", "S": "AAPL", "p": 187.1, "s": 100})
