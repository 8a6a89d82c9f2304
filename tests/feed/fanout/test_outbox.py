from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from feed.fanout.outbox import MESSAGES_ROOM_BYTES, PORTION_BYTES, Outbox
from tests.builders import ListSink


def make(max_bytes: int = 100) -> tuple[ListSink, Outbox, list[str]]:
    sink, events = ListSink(), list[str]()
    return sink, Outbox(sink, max_bytes, lambda: events.append("overflow")), events


def test_passes_on_while_the_client_reads() -> None:
    sink, outbox, _ = make()
    outbox.push(b"a")
    outbox.push(b"b" * 1000)
    assert sink.written == [b"a", b"b" * 1000]


def test_holds_while_paused_and_passes_on_in_one_write() -> None:
    sink, outbox, _ = make()
    sink.paused = True
    outbox.push(b"a")
    outbox.push(b"b")
    assert sink.written == []
    assert outbox.waiting_bytes == 2
    outbox.drain(0)
    assert sink.written == []
    sink.paused = False
    outbox.push(b"c")
    outbox.drain(0)
    assert sink.written == [b"abc"]
    assert outbox.waiting_bytes == 0


def test_what_was_held_goes_in_portions_for_as_long_as_the_sink_takes_it() -> None:
    sink, outbox, _ = make(max_bytes=10 * PORTION_BYTES)

    def write(data: bytes) -> None:
        sink.written.append(data)
        sink.paused = len(sink.written) == 2

    sink.write = write
    sink.paused = True
    for _ in range(6):
        outbox.push(b"x" * (PORTION_BYTES // 2))
    sink.paused = False
    outbox.drain(0)
    assert [len(each) for each in sink.written] == [PORTION_BYTES] * 2
    assert outbox.waiting_bytes == PORTION_BYTES
    outbox.push(b"y")
    sink.paused = False
    outbox.drain(0)
    assert b"".join(sink.written) == b"x" * 3 * PORTION_BYTES + b"y"
    assert outbox.waiting_bytes == 0


def test_overflow_counts_the_sinks_own_buffer_and_happens_once() -> None:
    sink, outbox, events = make(max_bytes=100)
    sink.paused, sink.unsent = True, 60
    outbox.push(b"x" * (40 + MESSAGES_ROOM_BYTES))
    assert events == []
    outbox.push(b"x")
    outbox.push(b"x" * 500)
    assert events == ["overflow"]
    assert outbox.closed
    assert outbox.waiting_bytes == sink.unsent
    sink.paused = False
    outbox.drain(0)
    assert sink.written == []


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from(["pause", "resume"]))))
def test_order_is_kept_and_the_bound_holds(steps: list[bytes | str]) -> None:
    sink, outbox, _ = make(max_bytes=100)
    taken = b""
    for step in steps:
        if isinstance(step, str):
            sink.paused = step == "pause"
            outbox.drain(0)
        elif outbox.offer(step):
            taken += step
        assert outbox.waiting_bytes <= 100
    sink.paused = False
    outbox.drain(0)
    assert b"".join(sink.written) == taken
