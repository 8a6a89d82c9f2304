from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import T0, trade
from tickcast.broker.publish_buffer import (
    BATCH_TICKS_MAX,
    TICK_BYTES,
    WAITING_TICKS_MAX,
    DroppedTicks,
    PublishBuffer,
)
from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import StreamKey, Trade
from tickcast.wire.times import Time

A, B = (StreamKey("live", "trades", symbol) for symbol in "AB")


def at(*numbers: int, symbol: str = "A") -> list[Trade]:
    return [trade(symbol, id=number, time=Time(T0 + number)) for number in numbers]


def test_streams_take_turns_in_batches() -> None:
    waiting = PublishBuffer("live", 1, 10 * TICK_BYTES)
    waiting.add(at(*range(BATCH_TICKS_MAX + 2)), 0)
    waiting.add(at(*range(300, 303), symbol="B"), 0)
    rounds = [waiting.pop_batches() for _ in range(3)]
    assert [{key: len(ticks) for key, ticks in each.items()} for each in rounds] == [
        {A: BATCH_TICKS_MAX, B: 3},
        {A: 2},
        {},
    ]
    assert waiting.count == 0


def test_what_is_invalid_keeps_out_only_what_follows() -> None:
    waiting = PublishBuffer("live", 1, 10 * TICK_BYTES)
    for _ in range(2):
        with pytest.raises(InvalidTick):
            waiting.add([*at(1), trade("not good"), *at(2)], 0)
        waiting.hold(0)
    assert waiting.count == 2
    assert waiting.pop_batches() == {A: at(1, 1)}


def test_what_was_checked_is_not_looked_at_again() -> None:
    waiting = PublishBuffer("live", 1, 10 * TICK_BYTES)
    odd = trade("not good")
    waiting.add([odd], 0, checked=True)
    waiting.hold(0)
    waiting.add([odd], 0, checked=True)
    assert waiting.pop_batches() == {A._replace(symbol="not good"): [odd, odd]}


def test_the_oldest_are_dropped_whatever_their_stream() -> None:
    waiting = PublishBuffer("live", 100, 3 * TICK_BYTES + 1)
    waiting.add(at(1), 0)
    waiting.hold(0)
    for number, symbol in enumerate("BABAB", 2):
        waiting.add(at(number, symbol=symbol), number)
        waiting.trim(number)
    assert waiting.pop_batches() == {B: at(4, 6, symbol="B"), A: at(5)}
    assert waiting.dropped == {
        A: DroppedTicks(2, Time(T0 + 1), Time(T0 + 3)),
        B: DroppedTicks(1, Time(T0 + 2), Time(T0 + 2)),
    }
    assert waiting.dropped_ticks == 3


def test_age_counts_from_when_it_was_taken_or_else_the_outage_began() -> None:
    waiting = PublishBuffer("live", 10, 100 * TICK_BYTES)
    waiting.add(at(1), 0)
    waiting.hold(5)
    waiting.add(at(2), 7)
    for now, left in ((15, 2), (15.1, 1), (17, 1), (17.1, 0)):
        waiting.trim(now)
        assert waiting.count == left


def test_a_short_while_between_two_outages_makes_nothing_young() -> None:
    waiting = PublishBuffer("live", 10, 100_000 * TICK_BYTES)
    waiting.hold(0)
    waiting.add(at(*range(WAITING_TICKS_MAX)), 1)
    waiting.add(at(1, symbol="B"), 8)
    assert waiting.pop_batches() == {A: at(*range(BATCH_TICKS_MAX))}
    waiting.hold(9)
    waiting.trim(10)
    assert waiting.dropped_ticks == 0
    waiting.trim(18.1)
    assert waiting.dropped_ticks == WAITING_TICKS_MAX - BATCH_TICKS_MAX + 1


Step = tuple[str, float | Sequence[str]]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.lists(st.sampled_from("ABC"), max_size=8)),
        st.tuples(st.just("pass"), st.floats(0, 3)),
        st.tuples(st.sampled_from(["go away", "come back"]), st.just(0.0)),
    ),
    max_size=40,
)


class Account:
    """A `PublishBuffer` used as a publisher uses it, and the state of each tick."""

    KEEP_S = 5.0
    KEEP_TICKS = 10

    def __init__(self) -> None:
        self.waiting = PublishBuffer("live", self.KEEP_S, self.KEEP_TICKS * TICK_BYTES)
        self.now = 0.0
        self.away = False
        self.held_at = 0.0
        self.taken_at: dict[int, float] = {}
        self.taken: dict[StreamKey, list[int]] = defaultdict(list)
        self.sent: dict[StreamKey, list[int]] = defaultdict(list)

    def step(self, what: str, of: float | Sequence[str]) -> None:
        if what == "pass":
            assert isinstance(of, float)
            self.now += of
        elif what == "take":
            assert not isinstance(of, float)
            self.take(of)
        elif what == "go away" and not self.away:
            self.waiting.hold(self.now)
            self.away, self.held_at = True, self.now
        elif what == "come back":
            self.away = False
            self.send_round()
        if self.away:
            self.waiting.trim(self.now)
            self.check_bounds()

    def take(self, symbols: Sequence[str]) -> None:
        ticks = []
        for symbol in symbols:
            number = len(self.taken_at)
            self.taken_at[number] = self.now
            self.taken[StreamKey("live", "trades", symbol)].append(number)
            ticks += at(number, symbol=symbol)
        self.waiting.add(ticks, self.now)

    def send_round(self) -> None:
        for key, ticks in self.waiting.pop_batches().items():
            self.sent[key] += [tick.id for tick in ticks]  # type: ignore[union-attr, misc]

    def check_bounds(self) -> None:
        assert self.waiting.count <= self.KEEP_TICKS
        # The oldest ticks are dropped, so the remaining ones are the newest.
        for number in list(self.taken_at)[len(self.taken_at) - self.waiting.count :]:
            age_s = self.now - max(self.taken_at[number], self.held_at)
            assert age_s <= self.KEEP_S


@given(STEPS)
def test_sent_and_dropped_is_what_was_taken(steps: list[Step]) -> None:
    account = Account()
    for step in steps:
        account.step(*step)
    while account.waiting.count:
        account.send_round()
    lost = account.waiting.dropped
    for key, taken in account.taken.items():
        sent = account.sent[key]
        assert sent == sorted(sent)
        missing = [T0 + number for number in sorted({*taken} - {*sent})]
        assert len(missing) + len(sent) == len(taken)
        if missing:
            assert lost[key] == DroppedTicks(len(missing), Time(missing[0]), Time(missing[-1]))
        else:
            assert key not in lost
    assert account.waiting.dropped_ticks == sum(each.count for each in lost.values())


@given(STEPS)
def test_in_the_end_all_is_dropped_that_was_not_sent(steps: list[Step]) -> None:
    account = Account()
    for step in steps:
        account.step(*step)
    account.waiting.drop_all()
    assert account.waiting.count == 0
    sent = sum(map(len, account.sent.values()))
    assert account.waiting.accepted == sent + account.waiting.dropped_ticks == len(account.taken_at)
    for key, taken in account.taken.items():
        lost = account.waiting.dropped.get(key)
        assert len(account.sent[key]) + (lost.count if lost else 0) == len(taken)
