"""Bars from trades, compared with models that are simple rather than fast."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from itertools import islice, takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.bars.builder import BarBuilder
from producers.bars.series import FILL_MAX, LENGTHS_NS
from producers.recordings.csv import CsvRecording
from producers.simulation.scenarios import SCENARIOS, generate_scenario
from tests.builders import quote, trade
from tests.conftest import ES_TRADES
from tickcast.wire.ticks import Bar, Timeframe, Trade
from tickcast.wire.times import NS_PER_SECOND, Time

NOON = Time.parse("2026-01-05T12:00:00Z")
LATER = Time(NOON + 10**6 * NS_PER_SECOND)
"""Long after everything: only the clock of the trades advances."""


def at(seconds: float, price: float = 10.0, size: float = 1.0, symbol: str = "ES") -> Trade:
    return trade(symbol, price, size, time=Time(NOON + round(seconds * NS_PER_SECOND)))


def bars_of(*timeframes: Timeframe, lateness_s: float = 2, fill: bool = False) -> BarBuilder:
    bars = BarBuilder(timeframes or ("1s",), lateness_s, fill)
    bars.open("ES", {}, ())
    return bars


def feed(bars: BarBuilder, *ticks: Trade, came: Time = LATER) -> list[Bar]:
    """Feed trades one by one."""
    return [bar for tick in ticks for bar in bars.add_trades(tick.symbol, [tick], came, came)]


def starts(bars: Iterable[Bar]) -> list[float]:
    return [(bar.time - NOON) / NS_PER_SECOND for bar in bars]


def test_a_bar_sums_up_its_trades() -> None:
    bars = bars_of()
    trades = [at(0.5, 10, 1), at(0.1, 12, 2), at(0.9, 9, 3), at(0.7, 11, 4)]
    assert feed(bars, *trades, at(2.9)) == []
    (bar,) = feed(bars, at(3))
    assert bar == Bar(
        symbol="ES", open=10, high=12, low=9, close=11, volume=10, trade_count=4, vwap=10.5,
        time=NOON, timeframe="1s",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("timeframe", "start"),
    [
        ("1s", "2026-01-05T14:37:42Z"),
        ("5s", "2026-01-05T14:37:40Z"),
        ("1m", "2026-01-05T14:37:00Z"),
        ("5m", "2026-01-05T14:35:00Z"),
        ("1h", "2026-01-05T14:00:00Z"),
        ("1d", "2026-01-05T00:00:00Z"),
    ],
)
def test_bars_begin_at_whole_multiples_in_utc(timeframe: Timeframe, start: str) -> None:
    bars = bars_of(timeframe)
    first = Time.parse("2026-01-05T14:37:42.999999999Z")
    end = Time.parse(start) + LENGTHS_NS[timeframe] + 2 * NS_PER_SECOND
    assert bars.add_trades("ES", [trade(time=first), trade(time=Time(end - 1))], LATER, LATER) == []
    (bar,) = bars.add_trades("ES", [trade(time=Time(end))], LATER, LATER)
    assert bar.time.rfc3339() == start


def test_a_late_trade_is_counted_and_changes_nothing() -> None:
    bars = bars_of("1s", "1m")
    assert starts(feed(bars, at(0), at(3))) == [0]
    assert feed(bars, at(0.5, price=99)) == []
    assert bars.late == {"1s": 1}
    second, minute = feed(bars, at(62))
    assert (second.time, minute.high) == (at(3).time, 99)


def test_other_ticks_are_ignored() -> None:
    bars = bars_of()
    assert bars.add_trades("ES", [quote()], LATER, LATER) == []


def test_a_bar_without_volume_has_its_close_as_vwap() -> None:
    bars = bars_of()
    (bar,) = feed(bars, at(0, 10, 0), at(0, 20, 0), at(5))
    assert (bar.volume, bar.vwap, bar.trade_count) == (0, 20, 2)


def test_a_bar_that_no_tick_can_hold_is_left_out() -> None:
    bars = bars_of()
    assert feed(bars, at(0, 1, 1e308), at(0, 1, 1e308), at(3)) == []
    assert bars.unfit == 1
    assert starts(feed(bars, at(4, 1e300, 1e300), at(7))) == [3]
    assert bars.unfit == 2


def test_a_trade_from_the_future_is_not_believed() -> None:
    bars = bars_of()
    assert feed(bars, at(0), at(10**9), came=NOON) == []
    assert bars.early == 1
    assert starts(feed(bars, at(3), came=NOON)) == [0]


# ----------------------------------------------------------------------------------- the clocks


def test_a_quiet_symbol_follows_the_wall_clock_in_a_live_feed() -> None:
    bars = bars_of()
    assert feed(bars, at(0.5), came=Time(NOON + NS_PER_SECOND)) == []
    # Half a second late: its second is over at 1.5 by the wall clock, and the allowance at 3.5.
    assert bars.advance(Time(NOON + round(3.49 * NS_PER_SECOND))) == []
    assert starts(bars.advance(Time(NOON + round(3.5 * NS_PER_SECOND)))) == [0]
    assert feed(bars, at(0.6), came=Time(NOON + 4 * NS_PER_SECOND)) == []
    assert bars.late == {"1s": 1}


def test_an_old_recording_does_not_go_by_the_wall() -> None:
    bars = bars_of()
    feed(bars, at(0.5))
    assert bars.advance(Time(LATER + 10**4 * NS_PER_SECOND)) == []


def test_a_quiet_symbol_follows_the_clock_of_the_others() -> None:
    bars = bars_of()
    bars.open("NQ", {}, ())
    feed(bars, at(0.5), at(50, symbol="NQ"))
    assert bars.advance(Time(LATER + NS_PER_SECOND)) == []
    # Their streams advance at different rates: progress in one says nothing about another.
    assert feed(bars, at(0.6), came=Time(LATER + NS_PER_SECOND)) == []
    assert bars.advance(Time(LATER + 2 * NS_PER_SECOND)) == []
    assert starts(bars.advance(Time(LATER + 3 * NS_PER_SECOND))) == [0]
    assert not bars.late


# -------------------------------------------------------------------------------- quiet symbols


def test_quiet_intervals_are_left_out_or_filled() -> None:
    assert starts(feed(bars_of(), at(0), at(5), at(9))) == [0, 5]
    bars = bars_of(fill=True)
    filled = feed(bars, at(0, price=7, size=2), at(5), at(7))
    assert starts(filled) == [0, 1, 2, 3, 4]
    empty = filled[1]
    assert (empty.open, empty.high, empty.low, empty.close, empty.vwap) == (7, 7, 7, 7, 7)
    assert (empty.volume, empty.trade_count) == (0, 0)


def test_filling_ends_after_an_hour_of_seconds() -> None:
    bars = bars_of(fill=True)
    filled = feed(bars, at(0), at(10**6), at(10**6 + 3))
    assert starts(filled) == [*range(FILL_MAX + 1), 10**6]
    assert starts(feed(bars, at(10**6 + 6))) == [10**6 + 1, 10**6 + 2, 10**6 + 3]


# -------------------------------------------------------------- resuming, and what is lost


def test_it_continues_after_the_published_bars() -> None:
    bars = BarBuilder(("1s", "5s"), 2, fill=False)
    (sent, *_) = feed(bars_of(), at(6), at(9))
    bars.open("ES", {"1s": sent}, ())
    assert [(bar.timeframe, *starts([bar])) for bar in feed(bars, at(5), at(6), at(7), at(12))] == [
        ("1s", 7),
        ("5s", 5),
    ]
    assert not bars.late
    bars.mark_caught_up("ES")
    feed(bars, at(6))
    assert bars.late == {"1s": 1, "5s": 1}


def test_a_filled_symbol_repeats_the_last_close() -> None:
    bars = BarBuilder(("1s",), 2, fill=True)
    (sent,) = feed(bars_of(), at(0, price=7), at(3))
    bars.open("ES", {"1s": sent}, ())
    assert [(*starts([bar]), bar.close) for bar in feed(bars, at(2), at(5))] == [(1, 7), (2, 10)]


def test_a_bar_that_may_lack_trades_is_left_out() -> None:
    bars = bars_of()
    feed(bars, at(0), at(1.5))
    bars.mark_lost("ES")
    # A missing trade may be as new as 3.6, the allowance after the next trade.
    assert starts(feed(bars, at(1.6), at(3), at(4), at(5), at(7.5))) == [4]
    assert bars.incomplete == 3


def test_trimmed_history_makes_no_partial_bar() -> None:
    bars = BarBuilder(("1s",), 2, fill=False)
    bars.open("ES", {}, ["1s"])
    assert starts(feed(bars, at(0.5), at(2), at(3), at(6))) == [3]


def test_a_new_numbering_may_go_back_in_time() -> None:
    bars = bars_of()
    assert starts(feed(bars, at(100), at(103))) == [100]
    bars.begin_epoch("ES")
    assert starts(feed(bars, at(0), at(2), at(3), at(4), at(6.9))) == [3]
    assert not bars.late


# ---------------------------------------------------------------------------- other implementations


@st.composite
def shuffled_trades(draw: st.DrawFn) -> tuple[list[Trade], int]:
    """Draw trades that may be late, some by more than the allowance; and the allowance."""
    lateness = draw(st.integers(0, 40)) * NS_PER_SECOND // 10
    ticks: list[tuple[int, Trade]] = []
    for number, gap in enumerate(draw(st.lists(st.integers(0, 25), min_size=1, max_size=60))):
        back = draw(st.integers(0, lateness * 3 // 2))
        base = (ticks[-1][0] if ticks else NOON) + gap * NS_PER_SECOND // 10
        price = draw(st.integers(-500, 5000)) / 4
        size = draw(st.integers(0, 10**6)) / 1000
        ticks.append((base, trade("ES", price, size, time=Time(base - back), id=number)))
    return [tick for _, tick in ticks], lateness


def naive(trades: Sequence[Trade], length: int, lateness: int) -> tuple[dict[int, Any], int]:
    """Return bars by start, straight from the definition, and the number of late trades."""
    members: dict[int, list[Trade]] = {}
    newest, late = -math.inf, 0
    for each in trades:
        start = each.time // length * length
        if start + length <= newest - lateness:
            late += 1
        else:
            members.setdefault(start, []).append(each)
        newest = max(newest, each.time)
    found = {}
    for start, of in members.items():
        if start + length > newest - lateness:
            continue
        prices = [each.price for each in of]
        volume = sum(Fraction(each.size) for each in of)
        turnover = sum(Fraction(each.price) * Fraction(each.size) for each in of)
        found[start] = (prices[0], max(prices), min(prices), prices[-1], float(volume), len(of),
                        float(turnover / volume) if volume else prices[-1])  # fmt: skip
    return found, late


@given(shuffled_trades(), st.lists(st.integers(1, 9), min_size=1))
def test_it_agrees_with_a_naive_model(case: tuple[list[Trade], int], batches: list[int]) -> None:
    trades, lateness = case
    bars = bars_of("1s", "5s", lateness_s=lateness / NS_PER_SECOND)
    found: list[Bar] = []
    place = 0
    while place < len(trades):
        for size in batches:
            found += bars.add_trades("ES", trades[place : place + size], LATER, LATER)
            place += size
    for timeframe in bars.timeframes:
        expected, late = naive(trades, LENGTHS_NS[timeframe], lateness)
        assert bars.late[timeframe] == late
        ours = [bar for bar in found if bar.timeframe == timeframe]
        assert [bar.time for bar in ours] == sorted(expected)
        for bar in ours:
            *exact, vwap = expected[bar.time]
            assert [bar.open, bar.high, bar.low, bar.close, bar.volume, bar.trade_count] == exact
            assert bar.low <= bar.vwap <= bar.high
            assert bar.vwap == pytest.approx(vwap, rel=1e-9, abs=1e-9)


@given(shuffled_trades(), st.data())
def test_stopped_and_started_anywhere_it_gives_the_same_bars(
    case: tuple[list[Trade], int], data: st.DataObject
) -> None:
    trades, lateness = case
    lateness_s = lateness / NS_PER_SECOND
    expected = bars_of("1s", "5s", lateness_s=lateness_s).add_trades("ES", trades, LATER, LATER)
    cut = data.draw(st.integers(0, len(trades)))
    sent = bars_of("1s", "5s", lateness_s=lateness_s).add_trades("ES", trades[:cut], LATER, LATER)
    # Bars that had closed by the stop may not have been published yet.
    del sent[data.draw(st.integers(0, len(sent))) :]
    again = BarBuilder(("1s", "5s"), lateness_s, fill=False)
    again.open("ES", {bar.timeframe: bar for bar in sent}, ())
    sent += again.add_trades("ES", trades, LATER, LATER)
    for timeframe in ("1s", "5s"):
        ours = [bar for bar in sent if bar.timeframe == timeframe]
        assert ours == [bar for bar in expected if bar.timeframe == timeframe]


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_have_late_trades_only_where_the_clock_is_wrong(name: str) -> None:
    ticks = generate_scenario(name, ["ES"], 50, 7, NOON)
    due = list(takewhile(lambda tick: tick.time < NOON + 119 * NS_PER_SECOND, ticks))
    for lateness_s in (2, 11):
        bars = bars_of(lateness_s=lateness_s)
        found: list[Bar] = []
        for tick in due:
            stamped = SCENARIOS[name].stamp(tick, NOON)
            found += bars.add_trades("ES", [stamped], tick.time, tick.time)
            found += bars.advance(tick.time)
        assert starts(found) == sorted(set(starts(found)))
        assert bool(bars.late) == (name == "skewed-clock" and lateness_s == 2)
        assert (bars.early, bars.incomplete, bars.unfit) == (0, 0, 0)


@pytest.mark.skipif(
    not ES_TRADES.exists(), reason="the recorded trades are not beside this checkout"
)
def test_real_trades_give_the_bars_that_another_computation_gives() -> None:
    some = islice(CsvRecording(ES_TRADES, "ES"), 100_000)
    ticks = [tick for tick in some if isinstance(tick, Trade)]
    bars = bars_of("1s", "1m")
    found: list[Bar] = []
    for place in range(0, len(ticks), 500):
        found += bars.add_trades("ES", ticks[place : place + 500], LATER, LATER)
    newest = ticks[-1].time - 2 * NS_PER_SECOND
    for timeframe, unit in (("1s", "seconds"), ("1m", "minutes")):
        expected = {
            start: row
            for start, row in by_clock(ticks, unit).items()
            if start + LENGTHS_NS[timeframe] <= newest  # type: ignore[index]
        }
        ours = [bar for bar in found if bar.timeframe == timeframe]
        assert len(ours) > (6_000 if timeframe == "1s" else 400)
        assert [bar.time for bar in ours] == list(expected)
        for bar in ours:
            *exact, vwap = expected[bar.time]
            assert [bar.open, bar.high, bar.low, bar.close, bar.volume, bar.trade_count] == exact
            assert bar.vwap == pytest.approx(vwap, rel=1e-9)
    assert not bars.late


def by_clock(ticks: Iterable[Trade], unit: str) -> dict[int, tuple[Any, ...]]:
    """Return bars by start, computed from each trade's time as text, cut off after the unit."""
    groups: dict[str, list[Trade]] = {}
    width = len("2013-09-01T17:00:00" if unit == "seconds" else "2013-09-01T17:00")
    for tick in ticks:
        groups.setdefault(tick.time.rfc3339()[:width], []).append(tick)
    found = {}
    for text, of in groups.items():
        start = int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * NS_PER_SECOND
        prices, sizes = [each.price for each in of], [each.size for each in of]
        vwap = math.fsum(map(float.__mul__, prices, sizes)) / math.fsum(sizes)
        found[start] = (
            prices[0], max(prices), min(prices), prices[-1], math.fsum(sizes), len(of), vwap,
        )  # fmt: skip
    return found
