"""What a client sends after a cut: nothing is left out, and each message is small enough."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed.access.action_policy import price_of
from tickcast.client.accounts import Position, SequenceAccounts
from tickcast.client.state import Fields, RequestedOptions, ResumePlanner
from tickcast.wire.actions import Subscribe, Unsubscribe
from tickcast.wire.parsing import parse_action
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey

PLAIN = RequestedOptions()


def accounts_at(epoch: str, **seqs: int) -> SequenceAccounts:
    """Make accounts of trades."""
    accounts = SequenceAccounts()
    for symbol, seq in seqs.items():
        accounts.set_position(Position("trades", symbol, epoch, seq))
    return accounts


def messages_of(
    requested: Mapping[Subscription, RequestedOptions],
    accounts: SequenceAccounts | None,
    max_bytes: int = 60_000,
) -> list[Fields]:
    def size(fields: Fields) -> int:
        return len(json.dumps(fields))

    return list(ResumePlanner(accounts, size, max_bytes).messages(requested))


def trades(
    *patterns: str, options: RequestedOptions = PLAIN
) -> dict[Subscription, RequestedOptions]:
    return {Subscription("trades", pattern): options for pattern in patterns}


def test_positions_and_zeros_for_new_streams() -> None:
    accounts = accounts_at("e1", A=3, B=0)
    accounts.set_position(Position("trades", "C", "e2", 7))
    (message,) = messages_of(trades("*"), accounts)
    assert message == {
        "action": "subscribe",
        "trades": ["*"],
        "resume": [
            {"epoch": "e1", "trades": {"A": 3, "B": 0}},
            {"epoch": "e2", "trades": {"C": 7}},
            {"epoch": "", "trades": {"*": 0}},
        ],
    }


def test_options_are_kept_and_narrow_subscriptions_come_first() -> None:
    late, merged = RequestedOptions(start=5), RequestedOptions(conflate_ms=250, slow="skip")
    requested = {
        **trades("*", options=merged),
        **trades("A*"),
        **trades("B", options=late),
        **trades("C"),
    }
    *others, last = messages_of(requested, accounts_at("e1", AA=1, B=2, D=4))
    by_first = {message["trades"][0]: message for message in others}
    assert by_first["B"]["resume"] == [{"epoch": "e1", "trades": {"B": 2}}]
    assert by_first["B"]["start"] == 5
    assert by_first["C"]["trades"] == ["C", "A*"]
    assert by_first["C"]["resume"][0] == {"epoch": "e1", "trades": {"AA": 1}}
    assert "start" not in by_first["C"]
    assert (last["trades"], last["conflate_ms"], last["slow"]) == (["*"], 250, "skip")
    assert last["resume"] == [
        {"epoch": "e1", "trades": {"D": 4}},
        {"epoch": "", "trades": {"*": 0}},
    ]


def test_a_wildcard_keeps_its_start_for_new_streams() -> None:
    (message,) = messages_of(trades("*", options=RequestedOptions(start=5)), accounts_at("e1", A=3))
    assert message["resume"] == [{"epoch": "e1", "trades": {"A": 3}}]
    assert message["start"] == 5


def test_a_server_without_extensions_gets_no_positions() -> None:
    requested = {**trades("A", options=RequestedOptions(100, None, 5)), **trades("*")}
    assert messages_of(requested, None) == [
        {"action": "subscribe", "trades": ["A"], "conflate_ms": 100},
        {"action": "subscribe", "trades": ["*"]},
    ]


def test_later_options_override_earlier_ones() -> None:
    held = RequestedOptions(250, "skip", 5)
    assert RequestedOptions(None, "close").merged_into(held) == RequestedOptions(250, "close", 5)
    assert RequestedOptions(0, None, 9).merged_into(held) == RequestedOptions(0, "skip", 5)


@pytest.mark.parametrize(
    "name_of", [lambda n: f"SYM{n:05}", lambda n: f"{'ABCDEFGHIJ'[n % 10]}{n}"]
)
def test_ten_thousand_positions_take_few_messages(name_of: Callable[[int], str]) -> None:
    """Servers charge for each message, and grant 20 at once."""
    accounts = accounts_at("0660dd82b243fc-020e7e", **{name_of(n): 1000 + n for n in range(10_000)})
    messages = messages_of(trades("*"), accounts)
    needed = sum(len(json.dumps(message)) for message in messages) / 60_000
    assert len(messages) < needed + 3
    assert sum(price_of(parse_action(json.dumps(message))) for message in messages) < 19


def test_many_long_names_and_many_streams_are_fast() -> None:
    """The longest list of names that servers grant; one message holds a part of it."""
    named = {f"{n:032}": n + 1 for n in range(1000)}
    accounts = accounts_at("e1", **named, **{f"S{n}": n for n in range(9000)})
    began = time.process_time()
    messages = messages_of(trades(*named, "*"), accounts)
    assert time.process_time() - began < 2
    found = {
        symbol: seq
        for message in messages
        for positions in message.get("resume", [])
        if positions["epoch"]
        for symbol, seq in positions["trades"].items()
    }
    assert found == {each.symbol: each.seq for each in accounts.resumable(list(trades("*")))}
    assert max(len(json.dumps(message)) for message in messages) <= 60_000


SYMBOLS = st.lists(st.text("AB", min_size=1, max_size=9), min_size=1, max_size=150, unique=True)
PATTERNS = st.lists(
    st.sampled_from(["*", "A*", "AB*", "AAB*", "A", "AB", "BBB", "ABAB"]), unique=True, min_size=1
)
WISHES = st.sampled_from([PLAIN, RequestedOptions(conflate_ms=250), RequestedOptions(start=5)])


@given(SYMBOLS, PATTERNS, st.data())
def test_every_stream_resumes_whatever_the_message_size(
    symbols: list[str], patterns: list[str], data: st.DataObject
) -> None:
    requested = {
        Subscription("trades", pattern): data.draw(WISHES) if len(pattern) < 3 else PLAIN
        for pattern in patterns
    }
    accounts = accounts_at("e1", **{symbol: seq for seq, symbol in enumerate(symbols, 1)})
    held: dict[Subscription, Any] = {}
    got: dict[str, int] = {}
    for message in messages_of(requested, accounts, max_bytes=300):
        assert len(json.dumps(message)) <= 300
        action = parse_action(json.dumps(message))
        if isinstance(action, Unsubscribe):
            assert action.subscriptions <= held.keys()
            held = {each: held[each] for each in held if each not in action.subscriptions}
            continue
        assert isinstance(action, Subscribe)
        before, now = Coverage(held), Coverage(action.subscriptions)
        for symbol in symbols:
            key = StreamKey("live", "trades", symbol)
            if now.covers(key) and not before.covers(key):
                position = action.resume.match(key)
                assert position is not None
                got[symbol] = position.seq
        held.update(dict.fromkeys(action.subscriptions, action.options))
    assert held.keys() == requested.keys()
    assert all(held[each].conflate_ms == requested[each].conflate_ms for each in requested)
    coverage = Coverage(requested)
    assert got == {
        symbol: seq
        for seq, symbol in enumerate(symbols, 1)
        if coverage.covers(StreamKey("live", "trades", symbol))
    }
