from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed.access.entitlements import EVERYTHING, Entitlements
from tickcast.wire.subscriptions import Coverage, PatternMap, Subscription
from tickcast.wire.ticks import StreamKey

PATTERNS = st.from_regex(r"\A[ab]{1,4}\*?\Z") | st.just("*")
SYMBOLS = st.from_regex(r"\A[ab]{1,5}\Z")


def narrow(rights: Entitlements, pattern: str, channel: str = "trades") -> set[str]:
    return {each.pattern for each in rights.narrow("live", Subscription(channel, pattern))}


@pytest.mark.parametrize(
    ("symbols", "wanted", "left"),
    [
        (("*",), "*", {"*"}),
        (("BTC-*",), "*", {"BTC-*"}),
        (("BTC-*", "AAPL"), "*", {"BTC-*", "AAPL"}),
        (("BTC-*",), "B*", {"BTC-*"}),
        (("BTC-*",), "BTC-U*", {"BTC-U*"}),
        (("BTC-*",), "BTC-USD", {"BTC-USD"}),
        (("BTC-*",), "ETH-USD", set()),
        (("BTC-*",), "ETH-*", set()),
        (("AAPL",), "AAPL", {"AAPL"}),
        (("AAPL",), "AAPLX", set()),
        (("AAPL",), "AA*", {"AAPL"}),
    ],
)
def test_wildcards_are_narrowed_to_covered_symbols(
    symbols: tuple[str, ...], wanted: str, left: set[str]
) -> None:
    assert narrow(Entitlements(symbols=symbols), wanted) == left


def test_feeds_and_channels_are_covered_or_not() -> None:
    rights = Entitlements(feeds=("live",), channels=("trades",))
    assert narrow(rights, "*")
    assert not narrow(rights, "*", "quotes")
    assert not rights.narrow("demo", Subscription("trades", "*"))


@given(st.lists(PATTERNS, max_size=4), PATTERNS, SYMBOLS)
def test_narrowing_keeps_the_symbols_that_both_match(
    symbols: list[str], wanted: str, symbol: str
) -> None:
    rights = Entitlements(symbols=tuple(symbols))
    stream = StreamKey("live", "trades", symbol)

    def matches(*patterns: str) -> bool:
        return Coverage(Subscription("trades", each) for each in patterns).covers(stream)

    assert matches(*narrow(rights, wanted)) == (matches(wanted) and matches(*symbols))


def test_the_closest_pattern_wins_when_two_narrow_to_the_same() -> None:
    rights = Entitlements(symbols=("AAPL",))
    said = {Subscription("trades", "AAPL"): 1, Subscription("trades", "AAPL*"): 2,
            Subscription("trades", "*"): 3}  # fmt: skip
    assert rights.narrow_all("live", said) == {Subscription("trades", "AAPL"): 1}
    assert EVERYTHING.narrow_all("live", said) == said


def test_faults_name_what_is_wrong() -> None:
    wrong = Entitlements(feeds=("Live!",), channels=("tades",), symbols=("B*C",))
    assert [fault.split(":")[0] for fault in wrong.faults()] == ["feeds", "channels", "symbols"]
    assert not list(EVERYTHING.faults())


@given(st.lists(PATTERNS, max_size=6), st.lists(PATTERNS, max_size=6), st.booleans())
def test_subscriptions_without_covered_symbols_are_refused(
    symbols: list[str], wanted: list[str], quotes: bool
) -> None:
    rights = Entitlements(channels=("trades",), symbols=tuple(symbols))
    channel = "quotes" if quotes else "trades"
    asked = [Subscription(channel, pattern) for pattern in wanted]
    assert rights.refused("live", asked) == [
        each for each in asked if not rights.narrow("live", each)
    ]
    assert Entitlements(feeds=("demo",)).refused("live", asked) == asked


@given(
    st.lists(PATTERNS, max_size=6),
    st.dictionaries(PATTERNS, st.integers(), max_size=6),
    SYMBOLS,
)
def test_narrowing_several_keeps_the_options_of_each_symbol(
    symbols: list[str], said: dict[str, int], symbol: str
) -> None:
    wanted = {Subscription("trades", pattern): value for pattern, value in said.items()}
    stream = StreamKey("live", "trades", symbol)
    left = Entitlements(symbols=tuple(symbols)).narrow_all("live", wanted)
    allowed = Coverage(Subscription("trades", each) for each in symbols).covers(stream)
    assert PatternMap(left).match(stream) == (PatternMap(wanted).match(stream) if allowed else None)
