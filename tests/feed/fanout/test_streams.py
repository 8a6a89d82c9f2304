from __future__ import annotations

from feed.fanout.streams import TAIL_TICKS_MAX, TAIL_US, LiveStream
from tickcast.wire.ticks import StreamKey, Trade
from tickcast.wire.times import Time

KEY = StreamKey("live", "trades", "ES")


def stream_with_tail() -> LiveStream:
    stream = LiveStream(KEY, "e1", 0, None, 0)
    stream.hold_tail()
    return stream


def append(stream: LiveStream, seqs: range, published_us: int) -> None:
    ticks = [Trade(symbol="ES", price=1, size=1, time=Time(0), seq=seq) for seq in seqs]
    stream.append(ticks, published_us, "e1")


def first_seq_of(stream: LiveStream) -> int | None:
    assert stream.tail is not None
    return stream.tail.first_seq


def test_a_tail_drops_old_ticks_even_while_it_is_held() -> None:
    stream = stream_with_tail()
    for second in range(20):
        append(stream, range(second + 1, second + 2), second * 1_000_000)
    assert first_seq_of(stream) == 20 - TAIL_US // 1_000_000


def test_a_tail_is_limited_in_ticks() -> None:
    stream = stream_with_tail()
    append(stream, range(1, 11), 0)
    append(stream, range(11, 11 + TAIL_TICKS_MAX), 1)
    assert first_seq_of(stream) == 11


def test_a_tail_always_contains_the_last_batch() -> None:
    stream = stream_with_tail()
    append(stream, range(1, 2 * TAIL_TICKS_MAX), 0)
    assert first_seq_of(stream) == 1
    append(stream, range(2 * TAIL_TICKS_MAX, 2 * TAIL_TICKS_MAX + 1), 10 * TAIL_US)
    assert first_seq_of(stream) == 2 * TAIL_TICKS_MAX
