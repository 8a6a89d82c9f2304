from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.streams import StreamReader

from tickcast.wire.encoding import BINARY, TEXT, Encoding, build_frame, split_frames


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_reference_parser_reads_frames(size: int, encoding: Encoding) -> None:
    payload = b"x" * size
    reader = StreamReader()
    reader.feed_data(build_frame(payload, encoding))
    parsing = Frame.parse(reader.read_exact, mask=False, max_size=None)
    with pytest.raises(StopIteration) as stop:
        next(parsing)
    frame = stop.value.value
    assert frame.fin
    assert bytes(frame.data) == payload
    assert frame.opcode == (TEXT if encoding is Encoding.JSON else BINARY)


@given(st.lists(st.tuples(st.binary(max_size=300), st.sampled_from(Encoding))))
def test_joined_frames_can_be_split(frames: list[tuple[bytes, Encoding]]) -> None:
    joined = b"".join(build_frame(payload, encoding) for payload, encoding in frames)
    expected = [(TEXT if each is Encoding.JSON else BINARY, payload) for payload, each in frames]
    assert list(split_frames(joined)) == expected
