"""Every recorded frame with a trade or a quote yields exactly that tick."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from producers.recordings.captures import CaptureRecording, is_capture
from producers.venues.normalizer import Normalizer
from producers.venues.registry import VENUES
from tests.producers.venues.recorded import (
    BINANCE,
    COINBASE,
    Received,
    binance_tick,
    coinbase_tick,
    needs_captures,
    received_from,
)
from tickcast.venues import Notice, NoticeKind, TickFrame
from tickcast.wire.errors import BadFrame
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

pytestmark = needs_captures
each_venue = pytest.mark.parametrize(
    ("name", "path", "expect", "count"),
    [("coinbase", COINBASE, coinbase_tick, 214), ("binance", BINANCE, binance_tick, 86)],
)
NONSENSE: list[Any] = [None, "", "nan", "1_0", -1, 2**64, 1e400, [], {}, "\x00" * 100]
Expect = Callable[[Received], Tick | None]


@each_venue
def test_all_ticks_of_a_capture_are_exact(
    name: str, path: Path, expect: Expect, count: int
) -> None:
    kinds: Counter[object] = Counter()
    for received in received_from(path):
        content = VENUES[name].parse(received.frame, Time(received.at))
        tick = expect(received)
        if isinstance(content, TickFrame):
            assert [each.tick for each in content.ticks] == [tick]
            kinds["ticks"] += 1
        else:
            assert tick is None
            kinds[content.kind] += 1
    assert kinds["ticks"] == count
    assert kinds.keys() <= {"ticks", NoticeKind.UNMAPPED, NoticeKind.ACCEPTED}


@each_venue
def test_a_capture_has_no_repeats_and_no_gaps(
    name: str, path: Path, expect: Expect, count: int
) -> None:
    normalizer = Normalizer(VENUES[name])
    for received in received_from(path):
        normalizer.process(received.frame, Time(received.at))
    counts = normalizer.counts
    assert (counts.ticks, counts.repeats, counts.missing, counts.bad_frames) == (count, 0, 0, 0)
    assert counts.unmapped > 0


@each_venue
def test_a_capture_is_read_as_a_recording(
    name: str, path: Path, expect: Expect, count: int
) -> None:
    bad: list[tuple[int, str]] = []
    recording = CaptureRecording(path, lambda *row: bad.append(row))
    found = list(recording)
    assert found == [tick for each in received_from(path) if (tick := expect(each))]
    assert list(recording) == found
    assert bad == []
    assert is_capture(path)


@each_venue
def test_damaged_frames_are_refused_in_one_way(
    name: str, path: Path, expect: Expect, count: int
) -> None:
    frames = [each for each in received_from(path) if expect(each)]
    for received in frames[:20]:
        fields = msgspec.json.decode(received.frame)
        inner = fields.get("data", fields)
        for key in list(inner):
            for value in NONSENSE:
                damaged = msgspec.json.encode(
                    {**fields, "data": {**inner, key: value}} if "data" in fields
                    else {**fields, key: value}
                )  # fmt: skip
                normalizer = Normalizer(VENUES[name])
                try:
                    content = normalizer.process(damaged, Time(received.at))
                except Exception as error:
                    assert isinstance(error, BadFrame)
                    assert normalizer.counts.bad_frames == 1
                else:
                    assert isinstance(content, Notice) or len(content) == 1
