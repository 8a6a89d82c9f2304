from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import trades
from tickcast.wire import sequence
from tickcast.wire.sequence import (
    NEW_EPOCH,
    Batch,
    GapReason,
    History,
    SequenceEvent,
    SequenceGap,
    SequenceTracker,
)

E1, E2 = "0001-a", "0002-b"


def batch(first: int, count: int = 1, epoch: str = E1) -> Batch:
    return Batch(epoch, list(trades(count, "ES", first)))


def history(*batches: Batch, complete: bool = True, seq: int = 0, epoch: str = E1) -> History:
    last = max((each.ticks[-1].seq or 0 for each in batches), default=0)
    return History(epoch, max(seq, last), list(batches), last, complete)


def lost(first: int, last: int) -> SequenceGap:
    return SequenceGap(first, last, GapReason.BROKER)


def seqs(events: list[SequenceEvent]) -> list[int | SequenceGap]:
    """Return the numbers of ticks to deliver, and gaps unchanged."""
    found: list[int | SequenceGap] = []
    for event in events:
        found += (
            [event] if isinstance(event, SequenceGap) else [tick.seq or 0 for tick in event.ticks]
        )
    return found


def started(seq: int = 0) -> SequenceTracker:
    tracker = SequenceTracker()
    assert tracker.start_after(E1, seq) == []
    return tracker


def test_live_ticks_pass_through() -> None:
    tracker = started(5)
    assert seqs(tracker.add_batch(batch(6, 3))) == [6, 7, 8]
    assert not tracker.behind
    assert tracker.seq == 8


def test_batches_before_the_start_are_held() -> None:
    tracker = SequenceTracker()
    assert tracker.add_batch(batch(4, 2)) == []
    assert tracker.add_batch(batch(6, 2)) == []
    assert seqs(tracker.start_after(E1, 4)) == [5, 6, 7]


def test_known_ticks_are_left_out() -> None:
    tracker = started(5)
    assert tracker.add_batch(batch(3, 3)) == []
    assert seqs(tracker.add_batch(batch(4, 4))) == [6, 7]


def test_a_gap_is_filled_from_history() -> None:
    tracker = started(5)
    assert tracker.add_batch(batch(8, 2)) == []
    assert tracker.behind
    assert tracker.begin_repair() == 5
    assert tracker.add_batch(batch(10)) == []
    assert seqs(tracker.repair(history(batch(5, 4)))) == [6, 7, 8, 9, 10]
    assert not tracker.behind


def test_history_may_come_in_pages() -> None:
    tracker = started(0)
    tracker.add_batch(batch(9))
    assert tracker.begin_repair() == 0
    assert seqs(tracker.repair(history(batch(1, 3), complete=False))) == [1, 2, 3]
    assert tracker.behind
    assert tracker.begin_repair() == 3
    assert seqs(tracker.repair(history(batch(4, 5)))) == [4, 5, 6, 7, 8, 9]


def test_ticks_missing_from_history_are_a_gap() -> None:
    tracker = started(5)
    tracker.add_batch(batch(20))
    tracker.begin_repair()
    assert seqs(tracker.repair(history(batch(10, 10)))) == [lost(6, 9), *range(10, 21)]


def test_an_empty_history_leaves_a_gap_up_to_the_held_batches() -> None:
    tracker = started(5)
    tracker.add_batch(batch(9))
    tracker.begin_repair()
    assert seqs(tracker.repair(history(seq=9))) == [lost(6, 8), 9]
    assert not tracker.behind


def test_an_empty_history_leaves_a_gap_up_to_the_position_of_the_store() -> None:
    tracker = started(5)
    tracker.behind = True
    tracker.begin_repair()
    assert seqs(tracker.repair(history(seq=9))) == [lost(6, 9)]
    assert tracker.seq == 9


def test_a_hole_that_appears_during_a_read_is_not_final() -> None:
    tracker = started(5)
    tracker.add_batch(batch(8))
    tracker.begin_repair()
    tracker.add_batch(batch(9))
    # The connection was cut once more, and 10 and 11 were lost with it.
    tracker.add_batch(batch(12))
    assert seqs(tracker.repair(history(batch(6, 3)))) == [6, 7, 8, 9]
    assert tracker.behind
    assert tracker.begin_repair() == 9
    assert seqs(tracker.repair(history(batch(10, 3)))) == [10, 11, 12]


def test_a_later_epoch_starts_over_and_an_earlier_one_is_ignored() -> None:
    tracker = started(5)
    assert seqs(tracker.add_batch(batch(1, 2, E2))) == [NEW_EPOCH, 1, 2]
    assert tracker.add_batch(batch(6, 1, E1)) == []
    assert seqs(tracker.add_batch(batch(3, 1, E2))) == [3]


def test_a_new_epoch_is_announced_only_after_earlier_ticks() -> None:
    assert seqs(started().add_batch(batch(1, 2, E2))) == [1, 2]


def test_a_later_epoch_is_read_from_its_beginning() -> None:
    tracker = started(5)
    assert tracker.add_batch(batch(4, 1, E2)) == []
    assert tracker.behind
    tracker.begin_repair()
    assert seqs(tracker.repair(history(batch(1, 3, E2), epoch=E2))) == [NEW_EPOCH, 1, 2, 3, 4]


def test_held_batches_are_bounded_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1_000
    monkeypatch.setattr(sequence, "HELD_TICKS_MAX", limit)
    tracker = SequenceTracker()
    tracker.start_after(E1, 0)
    tracker.behind = True
    tracker.begin_repair()
    for first in range(1, 2 * limit, 100):
        tracker.add_batch(batch(first, 100))
    assert sum(len(each.ticks) for each in tracker._held) <= limit
    assert tracker.repair(history()) == []
    assert tracker.behind
    assert tracker.begin_repair() == 0


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    begin=st.integers(0, 30),
    never_live=st.sets(st.integers(0, 19)),
    starts=st.sets(st.integers(0, 19)),
    ends=st.sets(st.integers(0, 19)),
    retained=st.integers(1, 20),
)
def test_every_tick_is_delivered_or_in_a_gap(
    sizes: list[int], begin: int, never_live: set[int], starts: set[int], ends: set[int],
    retained: int,
) -> None:  # fmt: skip
    """Some batches never arrive live; history is bounded, and is read rarely and slowly."""
    tracker = SequenceTracker()
    published: list[Batch] = []
    events: list[SequenceEvent] = []
    begin = min(begin, sum(sizes))
    is_started = False
    reading: History | None = None
    for index, size in enumerate(sizes):
        if not is_started and sum(sizes[:index]) >= begin:
            events += tracker.start_after(E1, begin)
            is_started = True
        published.append(batch(1 + sum(sizes[:index]), size))
        if index not in never_live:
            events += tracker.add_batch(published[-1])
        if is_started and reading is None and tracker.behind and index in starts:
            reading = history_after(published[-retained:], tracker.begin_repair(), published)
        if reading is not None and index in ends:
            events += tracker.repair(reading)
            reading = None
    if not is_started:
        events += tracker.start_after(E1, begin)
    if reading is not None:
        events += tracker.repair(reading)
    tracker.behind = True
    for _ in range(2):
        events += tracker.repair(
            history_after(published[-retained:], tracker.begin_repair(), published)
        )
    assert not tracker.behind
    covered: list[int] = []
    for event in events:
        if isinstance(event, SequenceGap):
            covered += range(event.first_seq or 0, (event.last_seq or 0) + 1)
        else:
            covered += [tick.seq or 0 for tick in event.ticks]
    assert covered == list(range(begin + 1, sum(sizes) + 1))
    if retained == 20:
        assert not any(isinstance(event, SequenceGap) for event in events)


def history_after(retained: list[Batch], after: int, published: list[Batch]) -> History:
    found = [each for each in retained if (each.ticks[-1].seq or 0) > after]
    return history(*found, seq=published[-1].ticks[-1].seq or 0)
