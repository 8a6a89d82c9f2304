from __future__ import annotations

import re
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcast.wire.actions import Subscribe
from tickcast.wire.errors import Fault, InvalidAction
from tickcast.wire.parsing import parse_action
from tickcast.wire.positions import (
    EPOCH_MAX,
    NO_POSITIONS,
    StreamPosition,
    build_positions,
    parse_positions,
)
from tickcast.wire.subscriptions import PatternMap, Subscription
from tickcast.wire.ticks import CHANNELS, StreamKey

FORM = 'it is {"epoch":…,"trades":{"AAPL":1041},…}, or a list of such maps'


def subscriptions(*entries: str) -> frozenset[Subscription]:
    """Convert names such as `trades/A` to subscriptions."""
    return frozenset(Subscription(*entry.split("/", 1)) for entry in entries)


def stream(symbol: str, channel: str = "trades") -> StreamKey:
    return StreamKey("live", channel, symbol)


WANTED = subscriptions("trades/A", "trades/B", "trades/BTC-*", "quotes/*")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, FORM),
        ("A", FORM),
        (True, FORM),
        ([5], FORM),
        ([[]], FORM),
        ({"epoch": "e", "trades": 5}, FORM),
        ({"epoch": "e", "trades": ["A"]}, FORM),
        ({"epoch": "e", "news": {"A": 1}}, FORM),
        ({"epoch": "e", 5: {"A": 1}}, FORM),
        ({}, "epoch is a string of at most 64 characters"),
        ([{}], "epoch is a string of at most 64 characters"),
        ({"trades": {"A": 1}}, "epoch is a string of at most 64 characters"),
        ({"epoch": 5}, "epoch is a string of at most 64 characters"),
        ({"epoch": None}, "epoch is a string of at most 64 characters"),
        ({"epoch": "e" * (EPOCH_MAX + 1)}, "epoch is a string of at most 64 characters"),
        ({"epoch": "e", "trades": {"A B": 1}}, "'A B' is not a symbol"),
        ({"epoch": "e", "trades": {"A*B": 1}}, "'A*B' is not a symbol"),
        ({"epoch": "e", "trades": {"": 1}}, "'' is not a symbol"),
        ({"epoch": "e", "trades": {"é\n": 1}}, r"'\xe9\n' is not a symbol"),
        ({"epoch": "e", "trades": {5: 1}}, "5 is not a symbol"),
        (
            {"epoch": "e", "trades": {"A": -1}},
            "the position of A is an integer from 0 to 9007199254740991",
        ),
        (
            {"epoch": "e", "trades": {"A": 1.0}},
            "the position of A is an integer from 0 to 9007199254740991",
        ),
        (
            {"epoch": "e", "trades": {"A": True}},
            "the position of A is an integer from 0 to 9007199254740991",
        ),
        (
            {"epoch": "e", "trades": {"A": "1"}},
            "the position of A is an integer from 0 to 9007199254740991",
        ),
        (
            {"epoch": "e", "trades": {"A": None}},
            "the position of A is an integer from 0 to 9007199254740991",
        ),
        (
            {"epoch": "e", "trades": {"A": 2**53}},
            "the position of A is an integer from 0 to 9007199254740991",
        ),
        ({"epoch": "e", "quotes": {"*": 1}}, "the position of * can only be 0"),
        ({"epoch": "e", "trades": {"BTC-*": 1}}, "the position of BTC-* can only be 0"),
        ({"epoch": "e", "trades": {"C": 1}}, "this message does not subscribe to trades C"),
        ({"epoch": "e", "bars": {"A": 1}}, "this message does not subscribe to bars A"),
        ({"epoch": "e", "trades": {"*": 0}}, "this message does not subscribe to trades *"),
        ({"epoch": "e", "trades": {"BTC*": 0}}, "this message does not subscribe to trades BTC*"),
        (
            [{"epoch": "e", "trades": {"A": 1}}, {"epoch": "f", "trades": {"A": 1}}],
            "trades A appears twice",
        ),
        (
            [{"epoch": "e", "quotes": {"*": 0}}, {"epoch": "e", "quotes": {"*": 0}}],
            "quotes * appears twice",
        ),
    ],
)
def test_invalid_positions_are_refused(value: object, words: str) -> None:
    with pytest.raises(InvalidAction, match=f"^resume: {re.escape(words)}$") as caught:
        parse_positions(value, WANTED)
    assert caught.value.fault is Fault.INVALID_SYNTAX


def test_an_error_quotes_only_the_beginning_of_a_long_symbol() -> None:
    with pytest.raises(InvalidAction) as caught:
        parse_positions({"epoch": "e", "trades": {"x" * 100_000: 1}}, WANTED)
    assert len(caught.value.detail) < 100


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"epoch": "e"},
        {"epoch": "", "trades": {}},
        [{"epoch": "e", "trades": {}}, {"epoch": "e", "quotes": {}}],
    ],
)
def test_no_positions_at_all(value: object) -> None:
    positions = parse_positions(value, WANTED)
    assert not positions
    assert positions.match(stream("A")) is None


def test_a_stream_without_a_position_has_none() -> None:
    positions = parse_positions({"epoch": "e", "trades": {"A": 7}}, WANTED)
    assert positions
    assert positions.match(stream("A")) == StreamPosition("e", 7)
    assert positions.match(stream("B")) is None
    assert positions.match(stream("A", "quotes")) is None
    assert NO_POSITIONS.match(stream("A")) is None


def test_streams_covered_by_wildcards_can_be_named() -> None:
    positions = parse_positions(
        {"epoch": "e", "trades": {"BTC-USD": 3}, "quotes": {"Z": 2**53 - 1}}, WANTED
    )
    assert positions.match(stream("BTC-USD")) == StreamPosition("e", 3)
    assert positions.match(stream("Z", "quotes")) == StreamPosition("e", 2**53 - 1)


def test_a_position_may_have_a_narrower_wildcard_than_the_subscription() -> None:
    positions = parse_positions({"epoch": "e", "quotes": {"BTC-*": 0}}, WANTED)
    assert positions.match(stream("BTC-USD", "quotes")) == StreamPosition("e", 0)
    assert positions.match(stream("ETH-USD", "quotes")) is None


def test_names_precede_prefixes_and_longer_prefixes_precede_shorter_ones() -> None:
    positions = parse_positions(
        [
            {"epoch": "e1", "quotes": {"*": 0, "BTC-USD": 9}},
            {"epoch": "e2", "quotes": {"BTC-*": 0}},
            {"epoch": "e3", "quotes": {"BTC-E*": 0}},
        ],
        WANTED,
    )
    found = {symbol: positions.match(stream(symbol, "quotes")) for symbol in
          ("BTC-USD", "BTC-EUR", "BTC-GBP", "BTC-", "ETH-USD")}  # fmt: skip
    assert found == {
        "BTC-USD": StreamPosition("e1", 9),
        "BTC-EUR": StreamPosition("e3", 0),
        "BTC-GBP": StreamPosition("e2", 0),
        "BTC-": StreamPosition("e2", 0),
        "ETH-USD": StreamPosition("e1", 0),
    }


def test_the_streams_of_one_message_may_be_in_several_epochs() -> None:
    positions = parse_positions(
        [{"epoch": "e1", "trades": {"A": 5}}, {"epoch": "e2", "trades": {"B": 6}}], WANTED
    )
    assert positions.match(stream("A")) == StreamPosition("e1", 5)
    assert positions.match(stream("B")) == StreamPosition("e2", 6)


def test_positions_are_sorted_by_epoch_channel_and_symbol() -> None:
    reported = build_positions(
        sorted(
            [
                (stream("B", "quotes"), StreamPosition("e2", 4)),
                (stream("B"), StreamPosition("e2", 3)),
                (stream("C", "bars:5m"), StreamPosition("e1", 2)),
                (stream("A"), StreamPosition("e2", 1)),
            ]
        )
    )
    assert [list(each.items()) for each in reported] == [
        [("epoch", "e1"), ("bars:5m", {"C": 2})],
        [("epoch", "e2"), ("trades", {"A": 1, "B": 3}), ("quotes", {"B": 4})],
    ]
    assert list(reported[1]["trades"]) == ["A", "B"]
    assert build_positions([]) == []


SYMBOLS = st.text("AB-/:.", min_size=1, max_size=4)
KEYS = st.builds(StreamKey, st.just("live"), st.sampled_from(CHANNELS), SYMBOLS)
POSITIONS = st.builds(
    StreamPosition, st.text(max_size=EPOCH_MAX), st.integers(min_value=0, max_value=2**53 - 1)
)


@given(st.dictionaries(KEYS, POSITIONS, max_size=8), st.booleans())
def test_reported_positions_can_be_sent_back(
    held: dict[StreamKey, StreamPosition], by_name: bool
) -> None:
    reported = build_positions(sorted(held.items()))
    wanted = frozenset(
        Subscription(channel, symbol if by_name else "*") for _, channel, symbol in held
    )
    positions = parse_positions(reported, wanted)
    assert {key: positions.match(key) for key in held} == held
    assert bool(positions) is bool(held)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["epoch", "trades", "quotes", "A", "*"]) | st.integers(0, 9),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_value_is_parsed_or_an_invalid_action(value: Any) -> None:
    try:
        positions = parse_positions(value, WANTED)
    except InvalidAction as error:
        assert error.detail.isprintable()
    else:
        assert isinstance(positions, PatternMap)


def test_keys_that_only_messagepack_can_have() -> None:
    message = {"action": "subscribe", "trades": ["A"]}
    resume = {"epoch": "e", "trades": {b"A": 1}}
    with pytest.raises(InvalidAction, match="is not a symbol"):
        parse_action(msgpack.packb(message | {"resume": resume}))
    action = parse_action(msgpack.packb(message | {"resume": {"epoch": "e", "trades": {"A": 1}}}))
    assert isinstance(action, Subscribe)
    assert action.resume.match(stream("A")) == StreamPosition("e", 1)
