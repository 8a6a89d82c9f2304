from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tickcast.wire.subscriptions import PatternMap, Subscription
from tickcast.wire.ticks import StreamKey

PATTERNS = st.text("ab", min_size=1, max_size=4) | st.text("ab", max_size=4).map("{}*".format)
SUBSCRIPTIONS = st.builds(Subscription, st.sampled_from(["trades", "quotes"]), PATTERNS)
SYMBOLS = st.text("ab", min_size=1, max_size=5)


def covers(pattern: str, other: str) -> bool:
    """Return whether `pattern` matches every symbol that `other` matches, as the rule reads."""
    if pattern.endswith("*"):
        return other.startswith(pattern[:-1])
    return pattern == other


def naive(values: dict[Subscription, int], wanted: Subscription) -> int | None:
    matching = [
        each
        for each in values
        if each.channel == wanted.channel and covers(each.pattern, wanted.pattern)
    ]
    longest = max(
        matching, key=lambda each: (not each.is_wildcard, len(each.pattern)), default=None
    )
    return None if longest is None else values[longest]


@given(st.dictionaries(SUBSCRIPTIONS, st.integers(), max_size=12), SYMBOLS)
def test_the_name_decides_or_else_the_longest_prefix(
    values: dict[Subscription, int], symbol: str
) -> None:
    found = PatternMap(values)
    for channel in ("trades", "quotes", "bars"):
        stream = StreamKey("live", channel, symbol)
        expected = naive(values, Subscription(channel, symbol))
        assert found.match(stream) == expected
        assert found.covers(stream) == (expected is not None)


@given(st.dictionaries(SUBSCRIPTIONS, st.integers(), max_size=12), SUBSCRIPTIONS)
def test_a_pattern_is_looked_up_as_a_whole(
    values: dict[Subscription, int], wanted: Subscription
) -> None:
    assert PatternMap(values).match_pattern(*wanted) == naive(values, wanted)
