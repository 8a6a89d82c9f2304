"""Cutting and merging tapes, and what verify reports about the results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import T0, quote, trade, trades
from tests.tickcast.tapes.builders import TICKS, a_tape, in_a_folder, write
from tickcast.tapes import Tape, TapeWriter
from tickcast.tapes.editing import cut, merge
from tickcast.tapes.format import GapMark, compress
from tickcast.tapes.manifest import encode_manifest, manifest_path
from tickcast.tapes.verify import TapeChain, verify
from tickcast.wire.errors import InvalidTape
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time


def a_part(
    tape: Tape, begin: int | None = None, end: int | None = None, symbols: str | None = None
) -> Tape:
    path = tape.path.with_name("part.jsonl.zst")
    for each in (path, manifest_path(path)):
        each.unlink(missing_ok=True)
    writer = TapeWriter(path, "live")
    coverage = Coverage([Subscription("trades", symbols)]) if symbols else None
    first, last = (None if n is None else Time(T0 + n) for n in (begin, end))
    cut(tape, writer, first, last, coverage)
    writer.close()
    return Tape.open(path)


def merged(tapes: Sequence[Tape]) -> Tape:
    path = tapes[0].path.with_name("merged.jsonl.zst")
    for each in (path, manifest_path(path)):
        each.unlink(missing_ok=True)
    writer = TapeWriter(path, "live")
    merge(tapes, writer)
    writer.close()
    return Tape.open(path)


@in_a_folder
@given(
    flushes=st.lists(TICKS, max_size=4), begin=st.integers(-1100, 1100), size=st.integers(0, 500)
)
def test_a_part_holds_the_ticks_of_its_time(
    tmp_path: Path, flushes: list[list[Tick]], begin: int, size: int
) -> None:
    counts = {"ES": 0, "NQ": 0}
    for tick in (tick for ticks in flushes for tick in ticks):
        counts[tick.symbol] += 1
        tick.seq = counts[tick.symbol]
    path = tmp_path / "a.jsonl.zst"
    write(path, flushes)
    part = a_part(Tape.open(path), begin, begin + size)
    ticks = [tick for ticks in flushes for tick in ticks]
    assert list(part.read()) == [t for t in ticks if T0 + begin <= t.time < T0 + begin + size]
    verdict = verify(part.path)
    assert verdict.faults == []
    assert {gap.reason for gap in part.manifest.gaps} <= {"cut"}


def test_a_part_keeps_its_numbers_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    writer = TapeWriter(path, "live", "ws://x")
    writer.append_position("trades", "ES", "0665-a", 4)
    for seq in (5, 6, 9, 10, 12):
        writer.append_tick(trade(seq=seq, time=Time(T0 + seq)), rx=seq)
    writer.append_mark(
        GapMark(channel="trades", symbol="ES", first_seq=None, last_seq=None, reason="epoch")
    )
    writer.append_position("trades", "ES", "0666-b", 0)
    for seq in (1, 2, 3):
        writer.append_tick(trade(seq=seq, time=Time(T0 + 20 - seq)), rx=20 - seq)
    writer.append_tick(quote(seq=1))
    writer.close()
    whole = Tape.open(path)
    part = a_part(whole, 6, 18, "E*")
    assert [tick.seq for tick in part.read()] == [6, 9, 10, 12, 3]
    told = [(gap.reason, gap.first_seq, gap.last_seq) for gap in part.manifest.gaps]
    missing = [("missing", 7, 8), ("missing", 11, 11)]
    assert told == [*missing, ("epoch", None, None), ("cut", 1, 2)]
    assert [(each.channel, each.epoch) for each in part.manifest.streams] == [("trades", "0666-b")]
    assert [rx for item, rx in part.records() if isinstance(item, type(trade()))] == [
        6, 9, 10, 12, 17,
    ]  # fmt: skip
    assert verify(part.path).faults == []
    assert verify(whole.path).faults == []


@in_a_folder
@given(tapes=st.lists(TICKS, min_size=1, max_size=4), same=st.booleans())
def test_merging_is_stable(tmp_path: Path, tapes: list[list[Tick]], same: bool) -> None:
    made = []
    keyed: list[tuple[int, Tick]] = []
    for number, ticks in enumerate(tapes):
        for seq, tick in enumerate(ticks, 1):
            tick.symbol = tick.symbol if same else f"X{number}"
            tick.seq = None if same else seq
        path = tmp_path / f"{number}.jsonl.zst"
        write(path, [ticks])
        made.append(Tape.open(path))
        keyed += zip(accumulate((tick.time for tick in ticks), max), ticks, strict=True)
    result = merged(made)
    expected = [tick for _, tick in sorted(keyed, key=lambda each: each[0])]
    assert list(result.read()) == expected
    assert verify(result.path).faults == []


def test_tapes_that_follow_each_other_keep_their_numbers(tmp_path: Path) -> None:
    paths = [tmp_path / f"live-00000{n}-20130901T170000Z.jsonl.zst" for n in (1, 2, 3)]
    late = trade(seq=4, time=Time(T0 - 100))
    write(paths[0], [trades(3, first_seq=1)])
    write(paths[1], [[late, *trades(2, first_seq=5)]], close=False)
    write(paths[2], [trades(2, first_seq=9)])
    result = merged([Tape.open(path) for path in paths])
    assert [tick.seq for tick in result.read()] == [1, 2, 3, 4, 5, 6, 9, 10]
    (gap,) = result.manifest.gaps
    assert (gap.first_seq, gap.last_seq, gap.reason) == (7, 8, "missing")
    renamed = paths[0].with_name("b.jsonl.zst")
    write(renamed, [trades(3, first_seq=1)])
    result = merged([Tape.open(renamed), Tape.open(paths[1])])
    assert [tick.seq for tick in result.read()] == [1, 2, 3, 4, 5, 6]


def test_streams_of_two_numberings_lose_their_numbers(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl.zst", tmp_path / "two.jsonl.zst"
    write(one, [[*trades(2, first_seq=1), *trades(2, "NQ", first_seq=1)]])
    write(two, [trades(2, first_seq=1)])
    result = merged([Tape.open(one), Tape.open(two)])
    got = [(tick.symbol, tick.seq) for tick in result.read()]
    es = ("ES", None)
    assert got == [es, es, es, ("NQ", 1), ("NQ", 2), es]


def test_verify_finds_damage(tmp_path: Path) -> None:
    tape = a_tape(tmp_path, *(trades(50, first_seq=1 + 50 * n) for n in range(4)))
    assert verify(tape.path).faults == []
    good = tape.path.read_bytes()
    for place in (10, tape.manifest.frames[2].offset + 20, len(good) - 1):
        damaged = bytearray(good)
        damaged[place] ^= 0x55
        tape.path.write_bytes(damaged)
        try:
            assert verify(tape.path).faults
        except InvalidTape as error:
            assert place == 10, error
    os.truncate(tape.path, len(good) - 1)
    assert verify(tape.path).faults[0].startswith("damaged at byte ")


def test_verify_distinguishes_damage_from_a_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    write(path, [trades(50, first_seq=1), trades(50, first_seq=51)], close=False)
    with path.open("ab") as file:
        file.write(torn := compress(b"\n" * 9)[:-2])
    verdict = verify(path)
    assert (verdict.faults, verdict.torn_bytes) == ([], len(torn))
    assert not verdict.manifest.complete
    first = verdict.manifest.frames[1].offset
    data = bytearray(path.read_bytes())
    data[first + 9] ^= 0x55
    path.write_bytes(data + compress(b'{"T":"t","S":"A","p":1,"s":1,"t":0}\n'))
    (fault,) = verify(path).faults
    assert fault.startswith(f"damaged at byte {first:,}, and readable again at byte ")


def test_verify_finds_a_wrong_manifest(tmp_path: Path) -> None:
    tape = a_tape(tmp_path, trades(5, first_seq=1))
    manifest = tape.manifest
    manifest.content, manifest.ticks = "0" * 64, 6
    manifest_path(tape.path).write_bytes(encode_manifest(manifest))
    assert [fault[:20] for fault in verify(tape.path).faults] == [
        "the content is " + verify(tape.path).manifest.content[:5],
        "the manifest is wron",
    ]


@pytest.mark.parametrize(
    ("first_seq", "epoch", "faults"),
    [
        (4, "0665-a", []),
        (4, "", []),
        (6, "0665-a", ["trades/ES: 4 to 5 are missing after a"]),
        (3, "0665-a", ["trades/ES: 3 to 3 are on a as well"]),
        (4, "0666-b", ["trades/ES: not in the epoch of the end of a"]),
    ],
)
def test_verify_follows_a_chain(
    tmp_path: Path, first_seq: int, epoch: str, faults: list[str]
) -> None:
    chain = TapeChain()
    for name, seq, named in (("a", 1, "0665-a"), ("b", first_seq, epoch)):
        writer = TapeWriter(tmp_path / f"{name}.jsonl.zst", "live")
        writer.append_position("trades", "ES", named, seq - 1)
        for tick in trades(3, first_seq=seq):
            writer.append_tick(tick)
        writer.close()
        verdict = verify(writer.path)
        assert verdict.faults == []
        told = list(chain.check(writer.path, verdict))
        assert told == (faults if name == "b" else [])
