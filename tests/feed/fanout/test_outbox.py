from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from feed.fanout.outbox import MESSAGES_ROOM_BYTES, PORTION_BYTES, Outbox
from tests.builders import ListSink


def make_outbox(max_bytes: int = 100) -> tuple[ListSink, Outbox, list[str]]:
    sink, events = ListSink(), list[str]()
    return sink, Outbox(sink, max_bytes, lambda: events.append("overflow")), events


def test_writes_at_once_while_the_client_reads() -> None:
    sink, outbox, _ = make_outbox()
    outbox.push(b"a")
    outbox.push(b"b" * 1000)
    assert sink.written == [b"a", b"b" * 1000]


def test_holds_data_while_paused_and_then_writes_it_at_once() -> None:
    sink, outbox, _ = make_outbox()
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


def test_held_data_is_written_in_portions_until_the_sink_pauses() -> None:
    sink, outbox, _ = make_outbox(max_bytes=10 * PORTION_BYTES)

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


def test_the_limit_includes_the_sinks_buffer_and_overflow_happens_once() -> None:
    sink, outbox, events = make_outbox(max_bytes=100)
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
def test_order_and_limit_hold_for_any_sequence(steps: list[bytes | str]) -> None:
    sink, outbox, _ = make_outbox(max_bytes=100)
    accepted = b""
    for step in steps:
        if isinstance(step, str):
            sink.paused = step == "pause"
            outbox.drain(0)
        elif outbox.offer(step):
            accepted += step
        assert outbox.waiting_bytes <= 100
    sink.paused = False
    outbox.drain(0)
    assert b"".join(sink.written) == accepted
