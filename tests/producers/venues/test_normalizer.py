from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress

import pytest

from producers.venues.coinbase import Coinbase
from producers.venues.normalizer import ClockSkew, Normalizer
from tickcast.venues import Notice
from tickcast.wire.errors import BadFrame
from tickcast.wire.ticks import Trade
from tickcast.wire.times import NS_PER_SECOND, Time

T0 = Time.parse("2021-04-17T16:43:30Z")


def match(number: int, kind: str = "match", symbol: str = "BTC-USD") -> bytes:
    return (
        f'{{"type":"{kind}","trade_id":{number},"side":"buy","size":"1","price":"1",'
        f'"product_id":"{symbol}","time":"2021-04-17T16:43:30Z"}}'
    ).encode()


def ticker(sequence: int) -> bytes:
    return (
        f'{{"type":"ticker","sequence":{sequence},"product_id":"BTC-USD","best_bid":"1",'
        '"best_ask":"2","time":"2021-04-17T16:43:30Z"}'
    ).encode()


def ids(normalizer: Normalizer, frames: Iterable[bytes]) -> list[object]:
    found: list[object] = []
    for frame in frames:
        passed = normalizer.process(frame, T0)
        assert isinstance(passed, list)
        found += [tick.id for tick in passed if isinstance(tick, Trade)]
    return found


@pytest.mark.parametrize(
    ("numbers", "passed", "repeats", "gaps", "missing"),
    [
        ([5, 6, 7], [5, 6, 7], 0, 0, 0),
        ([5, 6, 6, 5, 7], [5, 6, 7], 2, 0, 0),
        ([5, 8, 9], [5, 8, 9], 0, 1, 2),
        ([5, 8, 6, 7], [5, 8, 6, 7], 0, 1, 0),
        ([5, 9, 7, 7, 6, 8], [5, 9, 7, 6, 8], 1, 1, 0),
        ([5, 7, 4], [5, 7], 1, 1, 1),
        ([50_000, 1, 2], [50_000, 1, 2], 0, 0, 0),
    ],
)
def test_trades_are_deduplicated_and_gaps_are_counted(
    numbers: list[int], passed: list[int], repeats: int, gaps: int, missing: int
) -> None:
    normalizer = Normalizer(Coinbase())
    assert ids(normalizer, map(match, numbers)) == passed
    counts = normalizer.counts
    assert (counts.repeats, counts.gaps, counts.missing) == (repeats, gaps, missing)
    assert counts.ticks == len(passed)


def test_a_gap_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ids(Normalizer(Coinbase()), map(match, (5, 8)))
    (record,) = caplog.records
    assert record.getMessage() == "trades are missing"
    assert (record.__dict__["first"], record.__dict__["last"]) == (6, 7)


def test_the_last_match_after_a_reconnection_is_dropped() -> None:
    normalizer = Normalizer(Coinbase())
    frames = [match(5), match(6), match(6, "last_match"), match(7)]
    assert ids(normalizer, frames) == [5, 6, 7]


def test_old_quotes_are_dropped_and_their_jumps_are_no_gaps() -> None:
    normalizer = Normalizer(Coinbase())
    counts = []
    for number in (10, 20, 15, 20, 21):
        passed = normalizer.process(ticker(number), T0)
        assert isinstance(passed, list)
        counts.append(len(passed))
    assert counts == [1, 1, 0, 0, 1]
    assert (normalizer.counts.gaps, normalizer.counts.repeats) == (0, 2)


def test_numbers_are_per_symbol_and_other_symbols_are_dropped() -> None:
    normalizer = Normalizer(Coinbase(), {"BTC-USD", "ETH-USD"})
    frames = [match(5), match(900, symbol="ETH-USD"), match(1, symbol="A-B"), match(6)]
    assert ids(normalizer, frames) == [5, 900, 6]
    assert normalizer.counts.gaps == 0


def test_memory_is_bounded_with_many_gaps() -> None:
    normalizer = Normalizer(Coinbase())
    ids(normalizer, map(match, range(0, 2_000, 2)))
    (numbers,) = normalizer._numbers.values()
    assert len(numbers._holes) == 64


def test_placeholders_count_but_are_not_published() -> None:
    """Binance sends trades of 0 at 0, which have trade numbers too."""
    normalizer = Normalizer(Coinbase())
    nothing = match(6).replace(b'"size":"1","price":"1"', b'"size":"0","price":"0"')
    free = match(7).replace(b'"price":"1"', b'"price":"0.00"')
    assert ids(normalizer, [match(5), nothing, free, match(8)]) == [5, 8]
    assert (normalizer.counts.gaps, normalizer.counts.missing, normalizer.counts.bad_frames) == (
        0,
        0,
        0,
    )


def test_a_market_without_a_symbol_is_reported_once() -> None:
    normalizer = Normalizer(Coinbase())
    for market in ("币安人生-USD", "龙-USD"):
        with pytest.raises(BadFrame, match="is not the name of a market"):
            normalizer.process(match(1, symbol=market), T0)
        for number in range(3):
            assert isinstance(normalizer.process(match(number, symbol=market), T0), Notice)
    assert (normalizer.counts.bad_frames, normalizer.counts.unmapped) == (2, 6)
    for number in range(3_000):
        with suppress(BadFrame):
            normalizer.process(match(1, symbol=f"龙{number}-USD"), T0)
    assert len(normalizer._unknown_markets) == 1000


def test_bad_frames_are_counted() -> None:
    normalizer = Normalizer(Coinbase())
    with pytest.raises(BadFrame):
        normalizer.process(b"{", T0)
    assert normalizer.counts.bad_frames == 1


def test_skew_is_the_minimum_of_the_last_minute() -> None:
    skew = ClockSkew()
    assert skew.ns is None
    for second, late in ((0, 5), (1, 3), (2, 9)):
        at = Time(T0 + second * NS_PER_SECOND)
        skew.update(Time(at - late), at)
    assert skew.ns == 3
    for second in (31, 62, 93):
        at = Time(T0 + second * NS_PER_SECOND)
        skew.update(Time(at - 7), at)
    assert skew.ns == 7
