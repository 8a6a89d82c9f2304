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


def test_each_stream_gets_one_batch_per_round() -> None:
    buffer = PublishBuffer("live", 1, 10 * TICK_BYTES)
    buffer.add(at(*range(BATCH_TICKS_MAX + 2)), 0)
    buffer.add(at(*range(300, 303), symbol="B"), 0)
    rounds = [buffer.pop_batches() for _ in range(3)]
    assert [{key: len(ticks) for key, ticks in each.items()} for each in rounds] == [
        {A: BATCH_TICKS_MAX, B: 3},
        {A: 2},
        {},
    ]
    assert buffer.count == 0


def test_an_invalid_tick_stops_only_the_ticks_after_it() -> None:
    buffer = PublishBuffer("live", 1, 10 * TICK_BYTES)
    for _ in range(2):
        with pytest.raises(InvalidTick):
            buffer.add([*at(1), trade("not good"), *at(2)], 0)
        buffer.hold(0)
    assert buffer.count == 2
    assert buffer.pop_batches() == {A: at(1, 1)}


def test_checked_ticks_are_not_validated() -> None:
    buffer = PublishBuffer("live", 1, 10 * TICK_BYTES)
    odd = trade("not good")
    buffer.add([odd], 0, checked=True)
    buffer.hold(0)
    buffer.add([odd], 0, checked=True)
    assert buffer.pop_batches() == {A._replace(symbol="not good"): [odd, odd]}


def test_the_oldest_ticks_of_all_streams_are_dropped() -> None:
    buffer = PublishBuffer("live", 100, 3 * TICK_BYTES + 1)
    buffer.add(at(1), 0)
    buffer.hold(0)
    for number, symbol in enumerate("BABAB", 2):
        buffer.add(at(number, symbol=symbol), number)
        buffer.trim(number)
    assert buffer.pop_batches() == {B: at(4, 6, symbol="B"), A: at(5)}
    assert buffer.dropped == {
        A: DroppedTicks(2, Time(T0 + 1), Time(T0 + 3)),
        B: DroppedTicks(1, Time(T0 + 2), Time(T0 + 2)),
    }
    assert buffer.dropped_ticks == 3


def test_age_counts_from_acceptance_or_from_the_beginning_of_the_outage() -> None:
    buffer = PublishBuffer("live", 10, 100 * TICK_BYTES)
    buffer.add(at(1), 0)
    buffer.hold(5)
    buffer.add(at(2), 7)
    for now, left in ((15, 2), (15.1, 1), (17, 1), (17.1, 0)):
        buffer.trim(now)
        assert buffer.count == left


def test_a_short_recovery_does_not_reset_ages() -> None:
    buffer = PublishBuffer("live", 10, 100_000 * TICK_BYTES)
    buffer.hold(0)
    buffer.add(at(*range(WAITING_TICKS_MAX)), 1)
    buffer.add(at(1, symbol="B"), 8)
    assert buffer.pop_batches() == {A: at(*range(BATCH_TICKS_MAX))}
    buffer.hold(9)
    buffer.trim(10)
    assert buffer.dropped_ticks == 0
    buffer.trim(18.1)
    assert buffer.dropped_ticks == WAITING_TICKS_MAX - BATCH_TICKS_MAX + 1


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
        self.buffer = PublishBuffer("live", self.KEEP_S, self.KEEP_TICKS * TICK_BYTES)
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
            self.buffer.hold(self.now)
            self.away, self.held_at = True, self.now
        elif what == "come back":
            self.away = False
            self.send_round()
        if self.away:
            self.buffer.trim(self.now)
            self.check_bounds()

    def take(self, symbols: Sequence[str]) -> None:
        ticks = []
        for symbol in symbols:
            number = len(self.taken_at)
            self.taken_at[number] = self.now
            self.taken[StreamKey("live", "trades", symbol)].append(number)
            ticks += at(number, symbol=symbol)
        self.buffer.add(ticks, self.now)

    def send_round(self) -> None:
        for key, ticks in self.buffer.pop_batches().items():
            self.sent[key] += [tick.id for tick in ticks]  # type: ignore[union-attr, misc]

    def check_bounds(self) -> None:
        assert self.buffer.count <= self.KEEP_TICKS
        # The oldest ticks are dropped, so the remaining ones are the newest.
        for number in list(self.taken_at)[len(self.taken_at) - self.buffer.count :]:
            age_s = self.now - max(self.taken_at[number], self.held_at)
            assert age_s <= self.KEEP_S


@given(STEPS)
def test_sent_and_dropped_ticks_add_up_to_accepted_ones(steps: list[Step]) -> None:
    account = Account()
    for step in steps:
        account.step(*step)
    while account.buffer.count:
        account.send_round()
    lost = account.buffer.dropped
    for key, taken in account.taken.items():
        sent = account.sent[key]
        assert sent == sorted(sent)
        missing = [T0 + number for number in sorted({*taken} - {*sent})]
        assert len(missing) + len(sent) == len(taken)
        if missing:
            assert lost[key] == DroppedTicks(len(missing), Time(missing[0]), Time(missing[-1]))
        else:
            assert key not in lost
    assert account.buffer.dropped_ticks == sum(each.count for each in lost.values())
    reasons = account.buffer.dropped_by_reason
    assert account.buffer.dropped_ticks == reasons["too_old"] + reasons["no_room"]


@given(STEPS)
def test_drop_all_drops_every_unsent_tick(steps: list[Step]) -> None:
    account = Account()
    for step in steps:
        account.step(*step)
    account.buffer.drop_all()
    assert account.buffer.count == 0
    sent = sum(map(len, account.sent.values()))
    assert account.buffer.accepted == sent + account.buffer.dropped_ticks == len(account.taken_at)
    assert account.buffer.dropped_ticks == sum(account.buffer.dropped_by_reason.values())
    for key, taken in account.taken.items():
        lost = account.buffer.dropped.get(key)
        assert len(account.sent[key]) + (lost.count if lost else 0) == len(taken)
