from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import trades
from tickcast.wire.sequence import (
    HELD_TICKS_MAX,
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


def seqs(due: list[SequenceEvent]) -> list[int | SequenceGap]:
    """Return the numbers of ticks to deliver, and gaps unchanged."""
    found: list[int | SequenceGap] = []
    for item in due:
        found += [item] if isinstance(item, SequenceGap) else [tick.seq or 0 for tick in item.ticks]
    return found


def started(seq: int = 0) -> SequenceTracker:
    run = SequenceTracker()
    assert run.start_after(E1, seq) == []
    return run


def test_live_ticks_pass_through() -> None:
    run = started(5)
    assert seqs(run.add_batch(batch(6, 3))) == [6, 7, 8]
    assert not run.behind
    assert run.seq == 8


def test_batches_before_the_start_are_held() -> None:
    run = SequenceTracker()
    assert run.add_batch(batch(4, 2)) == []
    assert run.add_batch(batch(6, 2)) == []
    assert seqs(run.start_after(E1, 4)) == [5, 6, 7]


def test_known_ticks_are_left_out() -> None:
    run = started(5)
    assert run.add_batch(batch(3, 3)) == []
    assert seqs(run.add_batch(batch(4, 4))) == [6, 7]


def test_a_gap_is_filled_from_history() -> None:
    run = started(5)
    assert run.add_batch(batch(8, 2)) == []
    assert run.behind
    assert run.begin_repair() == 5
    assert run.add_batch(batch(10)) == []
    assert seqs(run.repair(history(batch(5, 4)))) == [6, 7, 8, 9, 10]
    assert not run.behind


def test_history_may_come_in_pages() -> None:
    run = started(0)
    run.add_batch(batch(9))
    assert run.begin_repair() == 0
    assert seqs(run.repair(history(batch(1, 3), complete=False))) == [1, 2, 3]
    assert run.behind
    assert run.begin_repair() == 3
    assert seqs(run.repair(history(batch(4, 5)))) == [4, 5, 6, 7, 8, 9]


def test_ticks_missing_from_history_are_a_gap() -> None:
    run = started(5)
    run.add_batch(batch(20))
    run.begin_repair()
    assert seqs(run.repair(history(batch(10, 10)))) == [lost(6, 9), *range(10, 21)]


def test_an_empty_history_leaves_a_gap_up_to_the_held_batches() -> None:
    run = started(5)
    run.add_batch(batch(9))
    run.begin_repair()
    assert seqs(run.repair(history(seq=9))) == [lost(6, 8), 9]
    assert not run.behind


def test_an_empty_history_leaves_a_gap_up_to_the_position_of_the_store() -> None:
    run = started(5)
    run.behind = True
    run.begin_repair()
    assert seqs(run.repair(history(seq=9))) == [lost(6, 9)]
    assert run.seq == 9


def test_a_hole_that_appears_during_a_read_is_not_final() -> None:
    run = started(5)
    run.add_batch(batch(8))
    run.begin_repair()
    run.add_batch(batch(9))
    run.add_batch(batch(12))  # The connection was cut once more, and 10 and 11 were lost with it.
    assert seqs(run.repair(history(batch(6, 3)))) == [6, 7, 8, 9]
    assert run.behind
    assert run.begin_repair() == 9
    assert seqs(run.repair(history(batch(10, 3)))) == [10, 11, 12]


def test_a_later_epoch_starts_over_and_an_earlier_one_is_ignored() -> None:
    run = started(5)
    assert seqs(run.add_batch(batch(1, 2, E2))) == [NEW_EPOCH, 1, 2]
    assert run.add_batch(batch(6, 1, E1)) == []
    assert seqs(run.add_batch(batch(3, 1, E2))) == [3]


def test_a_new_epoch_is_announced_only_after_earlier_ticks() -> None:
    assert seqs(started().add_batch(batch(1, 2, E2))) == [1, 2]


def test_a_later_epoch_is_read_from_its_beginning() -> None:
    run = started(5)
    assert run.add_batch(batch(4, 1, E2)) == []
    assert run.behind
    run.begin_repair()
    assert seqs(run.repair(history(batch(1, 3, E2), epoch=E2))) == [NEW_EPOCH, 1, 2, 3, 4]


def test_held_batches_are_bounded_and_read_again() -> None:
    run = SequenceTracker()
    run.start_after(E1, 0)
    run.behind = True
    run.begin_repair()
    for first in range(1, 2 * HELD_TICKS_MAX, 10_000):
        run.add_batch(batch(first, 10_000))
    assert sum(len(each.ticks) for each in run._held) <= HELD_TICKS_MAX
    assert run.repair(history()) == []
    assert run.behind
    assert run.begin_repair() == 0


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    begin=st.integers(0, 30),
    never_live=st.sets(st.integers(0, 19)),
    asked=st.sets(st.integers(0, 19)),
    answered=st.sets(st.integers(0, 19)),
    retained=st.integers(1, 20),
)
def test_every_tick_is_delivered_or_in_a_gap(
    sizes: list[int], begin: int, never_live: set[int], asked: set[int], answered: set[int],
    retained: int,
) -> None:  # fmt: skip
    """Some batches never arrive live; history is bounded, and is read rarely and slowly."""
    run = SequenceTracker()
    published: list[Batch] = []
    out: list[SequenceEvent] = []
    begin = min(begin, sum(sizes))
    began = False
    under_way: History | None = None
    for index, size in enumerate(sizes):
        if not began and sum(sizes[:index]) >= begin:
            out += run.start_after(E1, begin)
            began = True
        published.append(batch(1 + sum(sizes[:index]), size))
        if index not in never_live:
            out += run.add_batch(published[-1])
        if began and under_way is None and run.behind and index in asked:
            under_way = history_after(published[-retained:], run.begin_repair(), published)
        if under_way is not None and index in answered:
            out += run.repair(under_way)
            under_way = None
    if not began:
        out += run.start_after(E1, begin)
    if under_way is not None:
        out += run.repair(under_way)
    run.behind = True
    for _ in range(2):
        out += run.repair(history_after(published[-retained:], run.begin_repair(), published))
    assert not run.behind
    covered: list[int] = []
    for item in out:
        if isinstance(item, SequenceGap):
            covered += range(item.first_seq or 0, (item.last_seq or 0) + 1)
        else:
            covered += [tick.seq or 0 for tick in item.ticks]
    assert covered == list(range(begin + 1, sum(sizes) + 1))
    if retained == 20:
        assert not any(isinstance(item, SequenceGap) for item in out)


def history_after(retained: list[Batch], after: int, published: list[Batch]) -> History:
    found = [each for each in retained if (each.ticks[-1].seq or 0) > after]
    return history(*found, seq=published[-1].ticks[-1].seq or 0)
