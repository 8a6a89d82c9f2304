"""The sequence checker accepts every legal history, and catches every single fault in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.load.payload import PayloadReader, StreamNumbers, Summary
from clients.load.sequence import SequenceChecker
from tests.builders import trade
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.times import Time

Message = dict[str, Any]
SYMBOLS = ("A", "B")


def tick(symbol: str, seq: int | None, cf: int = 0, **more: Any) -> Message:
    fields = {"T": "t", "S": symbol, "p": 1.0, "s": 1.0, "t": "2026-01-05T14:30:00Z", "seq": seq}
    if cf:
        fields["cf"] = cf
    return {**fields, **more}


def notice(kind: str, symbol: str, first: int, last: int) -> Message:
    fields = {"T": kind, "ch": "trades", "S": symbol, "from": first, "to": last}
    return {**fields, "n": last - first + 1} if kind == "skipped" else fields


def gap(symbol: str, first: int | None, last: int | None, reason: str) -> Message:
    return {"T": "gap", "ch": "trades", "S": symbol, "from": first, "to": last, "reason": reason}


EPOCH = gap("A", None, None, "epoch")


class FrameChecker:
    """A sequence checker that takes messages in their wire format."""

    def __init__(self, **bases: int) -> None:
        self.streams = StreamNumbers()
        self.reader = PayloadReader(Encoding.JSON, self.streams)
        numbered = {self.streams.number("trades", name): seq for name, seq in bases.items()}
        self.checker = SequenceChecker("client 0", self.streams, numbered)

    def add(self, *frames: Sequence[Message]) -> SequenceChecker:
        for frame in frames:
            for part in self.reader.summarize(msgspec.json.encode(frame), shared=True):
                if isinstance(part, Summary):
                    self.checker.add_ticks(part)
                else:
                    self.checker.add_notice(part)
        return self.checker

    def close(self, **ends: int) -> SequenceChecker:
        numbered = {self.streams.number("trades", name): seq for name, seq in ends.items()}
        self.checker.close_streams(numbered)
        return self.checker


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, int], list[Message], dict[str, int]]:
    """Generate where two streams begin, a legal history of one client, and where they end."""
    bases = {symbol: draw(st.integers(0, 5)) for symbol in SYMBOLS}
    ends = dict(bases)
    messages: list[Message] = []
    for symbol in draw(st.lists(st.sampled_from(SYMBOLS), min_size=2, max_size=30)):
        end = ends[symbol]
        step = draw(st.integers(1, 4))
        kind = draw(st.sampled_from(["tick", "tick", "tick", "merged", "skipped", "gap", "snap"]))
        if kind == "snap":
            if end:
                messages.append(tick(symbol, end, snap=True))
            continue
        if kind in ("skipped", "gap"):
            messages.append(notice(kind, symbol, end + 1, end + step))
            end += step
        cf = step - 1 if kind == "merged" else 0
        messages.append(tick(symbol, end + 1 + cf, cf))
        ends[symbol] = end + 1 + cf
    return bases, messages, ends


@st.composite
def cut(draw: st.DrawFn, messages: list[Message]) -> list[list[Message]]:
    """Split messages into frames of any size; notices between ticks are allowed."""
    frames: list[list[Message]] = []
    rest = list(messages)
    while rest:
        size = draw(st.integers(1, 6))
        frames.append(rest[:size])
        rest = rest[size:]
    return frames


@given(st.data())
def test_legal_history_is_accepted(data: st.DataObject) -> None:
    bases, messages, ends = data.draw(histories())
    client = FrameChecker(**bases)
    client.add(*data.draw(cut(messages)))
    checker = client.close(**ends)
    assert checker.unexplained == 0, checker.faults
    published = sum(ends.values()) - sum(bases.values())
    assert checker.delivered + checker.merged + checker.skipped + checker.gap == published


def live(messages: list[Message]) -> list[int]:
    """Return the positions of messages that account for ticks."""
    return [place for place, each in enumerate(messages) if not each.get("snap")]


@given(st.data())
def test_any_message_left_out_is_caught(data: st.DataObject) -> None:
    bases, messages, ends = data.draw(histories())
    if places := live(messages):
        messages.pop(data.draw(st.sampled_from(places)))
        client = FrameChecker(**bases)
        client.add(*data.draw(cut(messages)))
        assert client.close(**ends).missing > 0


@given(st.data())
def test_any_message_sent_twice_is_caught(data: st.DataObject) -> None:
    bases, messages, ends = data.draw(histories())
    if places := live(messages):
        place = data.draw(st.sampled_from(places))
        later = data.draw(st.integers(place, len(messages)))
        messages.insert(later, messages[place])
        client = FrameChecker(**bases)
        client.add(*data.draw(cut(messages)))
        assert client.close(**ends).unexplained > 0


@given(st.data())
def test_any_two_messages_of_a_stream_swapped_are_caught(data: st.DataObject) -> None:
    bases, messages, ends = data.draw(histories())
    places = live(messages)
    pairs = [
        (one, other)
        for one in places
        for other in places
        if one < other and messages[one]["S"] == messages[other]["S"]
    ]
    if pairs:
        one, other = data.draw(st.sampled_from(pairs))
        messages[one], messages[other] = messages[other], messages[one]
        client = FrameChecker(**bases)
        client.add(*data.draw(cut(messages)))
        assert client.close(**ends).unexplained > 0


def test_kinds_of_faults_are_distinguished() -> None:
    checker = FrameChecker(A=0).add(
        [tick("A", 1), tick("A", 3)], [tick("A", 2)], [tick("A", 3)], [tick("A", 6)]
    )
    assert (checker.missing, checker.reordered, checker.repeated) == (2, 1, 1)
    kinds = [(fault.kind, fault.first_seq, fault.last_seq) for fault in checker.faults]
    assert kinds == [
        ("missing", 2, 2), ("reordered", 2, 2),
        ("repeated", 3, 3), ("missing", 4, 5),
    ]  # fmt: skip


def test_stream_begins_anywhere_unless_its_position_is_known() -> None:
    assert FrameChecker().add([tick("A", 7), tick("A", 8)]).unexplained == 0
    assert FrameChecker(A=5).add([tick("A", 7), tick("A", 8)]).missing == 1
    assert FrameChecker(A=7).add([tick("A", 7), tick("A", 8)]).repeated == 1
    assert FrameChecker().add([tick("A", 7, snap=True)], [tick("A", 9)]).missing == 1


def test_merged_ticks_must_add_up() -> None:
    assert FrameChecker(A=0).add([tick("A", 4, cf=3)]).unexplained == 0
    assert FrameChecker(A=0).add([tick("A", 4, cf=2)]).missing == 1
    assert FrameChecker(A=1).add([tick("A", 4, cf=3)]).repeated == 1


@pytest.mark.parametrize(
    "bad",
    [
        notice("skipped", "A", 3, 2),
        {**notice("skipped", "A", 2, 4), "n": 2},
        notice("gap", "A", 1, 4),
        gap("A", None, None, "broker"),
        gap("A", None, 4, "broker"),
        gap("A", None, 4, "retention"),
        gap("A", 2, None, "retention"),
        gap("A", None, None, "retention"),
        gap("A", None, 4, "epoch"),
        {"T": "gap", "ch": "news", "S": "A", "from": 2, "to": 4},
        {"T": "gap", "ch": "news", "S": "A", "from": None, "to": None, "reason": "epoch"},
    ],
)
def test_contradictory_notices_are_counted(bad: Message) -> None:
    assert FrameChecker(A=0).add([tick("A", 1)], [bad]).wrong_notices == 1


def test_new_epoch_restarts_the_numbering() -> None:
    assert (
        FrameChecker(A=0).add([tick("A", 1), tick("A", 2)], [EPOCH], [tick("A", 1)]).unexplained
        == 0
    )
    assert FrameChecker(A=0).add([tick("A", 1), tick("A", 2)], [tick("A", 1)]).repeated == 1


def test_new_epoch_begins_with_a_snapshot_or_a_gap() -> None:
    for begin in (tick("A", 7, snap=True), gap("A", 1, 7, "broker")):
        checker = FrameChecker(A=0).add(
            [tick("A", 9)], [EPOCH], [begin], [tick("A", 8), tick("A", 10)]
        )
        assert [fault.first_seq for fault in checker.faults] == [1, 9]


def test_history_begins_with_a_gap_of_unknown_length() -> None:
    begin = gap("A", None, 7, "retention")
    assert FrameChecker().add([begin], [tick("A", 8)]).unexplained == 0
    assert FrameChecker().add([begin], [tick("A", 9)]).missing == 1
    assert FrameChecker().add([begin], [tick("A", 7)]).repeated == 1
    assert FrameChecker(A=3).add([EPOCH], [begin], [tick("A", 8)]).unexplained == 0
    assert FrameChecker().add([begin]).gap == 0


def test_ticks_without_numbers_are_counted() -> None:
    checker = FrameChecker().add([tick("A", None), tick("A", None)])
    assert (checker.delivered, checker.unnumbered, checker.unexplained) == (2, 2, 0)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_times_are_exact_to_the_nanosecond(encoding: Encoding) -> None:
    reader = PayloadReader(encoding, StreamNumbers())
    for ns in (1_378_054_800_083_000_001, 1_378_054_800_000_000_000, 1, -5):
        one = trade(time=Time(ns), seq=1)
        (summary,) = reader.summarize(encode([one], encoding), shared=False)
        assert isinstance(summary, Summary)
        assert summary.first_ns == ns
        assert summary.samples[0].t_ns == ns
        assert summary.samples[0].weight == 1
