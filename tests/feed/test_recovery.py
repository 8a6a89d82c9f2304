from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from feed.batch import Batch
from feed.recovery import HELD_TICKS_MAX, Run
from tests.builders import trades

E1, E2 = "0001-a", "0002-b"


def batch(first: int, count: int = 1, epoch: str = E1) -> Batch:
    return Batch(epoch, list(trades(count, "ES", first)))


def seqs(batches: list[Batch]) -> list[int]:
    return [tick.seq or 0 for batch in batches for tick in batch.ticks]


def started(seq: int = 0) -> Run:
    run = Run()
    assert run.start(E1, seq) == []
    return run


def test_live_ticks_pass_through() -> None:
    run = started(5)
    assert seqs([*run.live(batch(6, 3))]) == [6, 7, 8]
    assert not run.behind
    assert run.seq == 8


def test_what_came_before_the_start_is_held_until_it() -> None:
    run = Run()
    assert run.live(batch(4, 2)) == []
    assert run.live(batch(6, 2)) == []
    assert seqs([*run.start(E1, 4)]) == [5, 6, 7]


def test_known_ticks_are_left_out() -> None:
    run = started(5)
    assert run.live(batch(3, 3)) == []
    assert seqs([*run.live(batch(4, 4))]) == [6, 7]


def test_a_gap_is_filled_from_history() -> None:
    run = started(5)
    assert run.live(batch(8, 2)) == []
    assert run.behind
    assert run.live(batch(10)) == []
    assert seqs([*run.repair(E1, [batch(5, 4)], complete=True)]) == [6, 7, 8, 9, 10]
    assert not run.behind
    assert run.lost == 0


def test_history_may_come_in_pages() -> None:
    run = started(0)
    run.live(batch(9))
    assert seqs([*run.repair(E1, [batch(1, 3)], complete=False)]) == [1, 2, 3]
    assert run.behind
    assert seqs([*run.repair(E1, [batch(4, 5)], complete=True)]) == [4, 5, 6, 7, 8, 9]


def test_what_history_lacks_is_counted_as_lost() -> None:
    run = started(5)
    run.live(batch(20))
    assert seqs([*run.repair(E1, [batch(10, 10)], complete=True)]) == [*range(10, 21)]
    assert run.lost == 4


def test_a_later_epoch_starts_over_and_an_earlier_one_is_ignored() -> None:
    run = started(5)
    assert seqs([*run.live(batch(1, 2, E2))]) == [1, 2]
    assert run.live(batch(6, 1, E1)) == []
    assert seqs([*run.live(batch(3, 1, E2))]) == [3]


def test_a_later_epoch_noticed_late_is_read_from_its_beginning() -> None:
    run = started(5)
    assert run.live(batch(4, 1, E2)) == []
    assert run.behind
    assert seqs([*run.repair(E2, [batch(1, 3, E2)], complete=True)]) == [1, 2, 3, 4]


def test_what_is_held_is_bounded() -> None:
    run = Run()
    for first in range(1, 2 * HELD_TICKS_MAX, 10_000):
        run.live(batch(first, 10_000))
    assert sum(len(each.ticks) for each in run._held) <= HELD_TICKS_MAX


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    begin=st.integers(0, 30),
    lost=st.sets(st.integers(0, 19)),
    read_history=st.sets(st.integers(0, 19)),
)
def test_whatever_is_lost_on_the_way_the_run_is_whole(
    sizes: list[int], begin: int, lost: set[int], read_history: set[int]
) -> None:
    """Some batches never arrive live; history is read now and then, and at the end."""
    run = Run()
    published: list[Batch] = []
    out: list[Batch] = []
    total = sum(sizes)
    begin = min(begin, total)
    first = 1
    began = False
    for index, size in enumerate(sizes):
        if not began and first > begin:
            out += run.start(E1, begin)
            began = True
        published.append(batch(first, size))
        first += size
        if index not in lost:
            out += run.live(published[-1])
        if began and run.behind and index in read_history:
            out += run.repair(E1, history_after(published, run.seq), complete=True)
    if not began:
        out += run.start(E1, begin)
    run.behind = True
    out += run.repair(E1, history_after(published, run.seq), complete=True)
    assert seqs(out) == list(range(begin + 1, total + 1))


def history_after(published: list[Batch], seq: int) -> list[Batch]:
    return [each for each in published if (each.ticks[-1].seq or 0) > seq]
