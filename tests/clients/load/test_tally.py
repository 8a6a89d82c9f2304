"""Tallies: every legal history is accepted, and every single fault in one is caught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.load.payload import PayloadReader, StreamNumbers, Summary
from clients.load.tally import FaultKind, SequenceChecker
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


class Book:
    """A tally that takes messages in their wire format."""

    def __init__(self, **bases: int) -> None:
        self.streams = StreamNumbers()
        self.reader = PayloadReader(Encoding.JSON, self.streams)
        numbered = {self.streams.number("trades", name): seq for name, seq in bases.items()}
        self.tally = SequenceChecker(self.streams, numbered)

    def take(self, *frames: Sequence[Message]) -> SequenceChecker:
        for frame in frames:
            content = self.reader.read(msgspec.json.encode(frame), shared=True)
            for part in [content] if isinstance(content, Summary) else content:
                if isinstance(part, Summary):
                    self.tally.add(part)
                else:
                    self.tally.add_notice(part)
        return self.tally

    def close(self, **ends: int) -> SequenceChecker:
        numbered = {self.streams.number("trades", name): seq for name, seq in ends.items()}
        self.tally.close(numbered)
        return self.tally


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
def test_what_the_protocol_allows_is_accepted(data: st.DataObject) -> None:
    bases, messages, ends = data.draw(histories())
    book = Book(**bases)
    book.take(*data.draw(cut(messages)))
    tally = book.close(**ends)
    assert tally.unexplained == 0, tally.faults
    published = sum(ends.values()) - sum(bases.values())
    assert tally.delivered + tally.merged + tally.skipped + tally.gapped == published


def live(messages: list[Message]) -> list[int]:
    """Return the positions of messages that account for ticks."""
    return [place for place, each in enumerate(messages) if not each.get("snap")]


@given(st.data())
def test_any_message_left_out_is_caught(data: st.DataObject) -> None:
    bases, messages, ends = data.draw(histories())
    if places := live(messages):
        messages.pop(data.draw(st.sampled_from(places)))
        book = Book(**bases)
        book.take(*data.draw(cut(messages)))
        assert book.close(**ends).missing > 0


@given(st.data())
def test_any_message_sent_twice_is_caught(data: st.DataObject) -> None:
    bases, messages, ends = data.draw(histories())
    if places := live(messages):
        place = data.draw(st.sampled_from(places))
        later = data.draw(st.integers(place, len(messages)))
        messages.insert(later, messages[place])
        book = Book(**bases)
        book.take(*data.draw(cut(messages)))
        assert book.close(**ends).unexplained > 0


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
        book = Book(**bases)
        book.take(*data.draw(cut(messages)))
        assert book.close(**ends).unexplained > 0


def test_what_is_wrong_is_told_apart() -> None:
    book = Book(A=0)
    tally = book.take([tick("A", 1), tick("A", 3)], [tick("A", 2)], [tick("A", 3)], [tick("A", 6)])
    assert (tally.missing, tally.reordered, tally.repeated) == (2, 1, 1)
    kinds = [(fault.kind, fault.first, fault.last) for fault in tally.faults]
    assert kinds == [
        (FaultKind.MISSING, 2, 2), (FaultKind.REORDERED, 2, 2),
        (FaultKind.REPEATED, 3, 3), (FaultKind.MISSING, 4, 5),
    ]  # fmt: skip


def test_a_stream_may_begin_anywhere_unless_it_is_known_where() -> None:
    assert Book().take([tick("A", 7), tick("A", 8)]).unexplained == 0
    assert Book(A=5).take([tick("A", 7), tick("A", 8)]).missing == 1
    assert Book(A=7).take([tick("A", 7), tick("A", 8)]).repeated == 1
    assert Book().take([tick("A", 7, snap=True)], [tick("A", 9)]).missing == 1


def test_merged_ticks_must_add_up() -> None:
    assert Book(A=0).take([tick("A", 4, cf=3)]).unexplained == 0
    assert Book(A=0).take([tick("A", 4, cf=2)]).missing == 1
    assert Book(A=1).take([tick("A", 4, cf=3)]).repeated == 1


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
def test_notices_that_do_not_fit(bad: Message) -> None:
    assert Book(A=0).take([tick("A", 1)], [bad]).wrong_notices == 1


def test_a_new_epoch_begins_anew() -> None:
    assert Book(A=0).take([tick("A", 1), tick("A", 2)], [EPOCH], [tick("A", 1)]).unexplained == 0
    assert Book(A=0).take([tick("A", 1), tick("A", 2)], [tick("A", 1)]).repeated == 1


def test_a_new_epoch_may_begin_with_a_snapshot_or_a_gap() -> None:
    for begin in (tick("A", 7, snap=True), gap("A", 1, 7, "broker")):
        tally = Book(A=0).take([tick("A", 9)], [EPOCH], [begin], [tick("A", 8), tick("A", 10)])
        assert [fault.first for fault in tally.faults] == [1, 9]


def test_the_past_may_begin_with_a_gap_of_unknown_length() -> None:
    begin = gap("A", None, 7, "retention")
    assert Book().take([begin], [tick("A", 8)]).unexplained == 0
    assert Book().take([begin], [tick("A", 9)]).missing == 1
    assert Book().take([begin], [tick("A", 7)]).repeated == 1
    assert Book(A=3).take([EPOCH], [begin], [tick("A", 8)]).unexplained == 0
    assert Book().take([begin]).gapped == 0


def test_ticks_without_numbers_are_counted() -> None:
    tally = Book().take([tick("A", None), tick("A", None)])
    assert (tally.delivered, tally.unnumbered, tally.unexplained) == (2, 2, 0)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_times_are_read_to_the_nanosecond(encoding: Encoding) -> None:
    reader = PayloadReader(encoding, StreamNumbers())
    for ns in (1_378_054_800_083_000_001, 1_378_054_800_000_000_000, 1, -5):
        one = trade(time=Time(ns), seq=1)
        summary = reader.read(encode([one], encoding), shared=False)
        assert isinstance(summary, Summary)
        assert summary.first_ns == ns
        assert summary.samples[0].t_ns == ns
        assert summary.samples[0].weight == 1
