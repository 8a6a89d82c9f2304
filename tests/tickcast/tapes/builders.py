"""Helpers that make tapes for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hypothesis import HealthCheck
from hypothesis import settings as examples
from hypothesis import strategies as st

from tests.builders import T0, trade
from tickcast.tapes import Tape, TapeWriter
from tickcast.tapes.manifest import manifest_path
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

in_a_folder = examples(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(path: Path, flushes: Iterable[Iterable[Tick]], *, close: bool = True) -> TapeWriter:
    path.unlink(missing_ok=True)
    manifest_path(path).unlink(missing_ok=True)
    writer = TapeWriter(path, "live", "ws://somewhere")
    for ticks in flushes:
        for tick in ticks:
            writer.append_tick(tick, rx=int(tick.time) + 5)
        writer.flush()
    if close:
        writer.close()
    else:
        writer.abandon()
    return writer


def a_tape(tmp_path: Path, *flushes: Iterable[Tick]) -> Tape:
    path = tmp_path / "a.jsonl.zst"
    write(path, flushes)
    return Tape.open(path)


TICKS = st.lists(
    st.builds(
        lambda kind, symbol, offset: kind(symbol, time=Time(T0 + offset)),
        st.sampled_from([trade, lambda symbol, time: trade(symbol, id='"', time=time)]),
        st.sampled_from(["ES", "NQ"]),
        st.integers(-1000, 1000),
    ),
    max_size=12,
)
