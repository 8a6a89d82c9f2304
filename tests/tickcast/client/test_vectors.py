"""Test vectors shared by this client and the web page's client: see `dashboard/*.test.js`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.builders import trade
from tickcast.client.accounts import Gap, SequenceAccounts
from tickcast.client.backoff import Backoff, Pace
from tickcast.client.notices import Event, Heartbeat
from tickcast.client.resume import RequestedOptions, ResumePlanner
from tickcast.client.state import ClientState, Message
from tickcast.wire.encoding import Encoding
from tickcast.wire.playback import ReplayState
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import Tick

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("vectors.json").read_text("utf-8")
)


def name_of(vector: dict[str, Any]) -> str:
    name: str = vector["name"]
    return name


def shown(items: Sequence[Tick | Event]) -> list[Any]:
    """Show ticks by their numbers and gaps by their content."""
    told = [item for item in items if not isinstance(item, ReplayState | Heartbeat)]
    return [list(item[2:]) if isinstance(item, Gap) else item.seq for item in told]


def enter(books: SequenceAccounts, event: dict[str, Any]) -> list[Tick | Gap]:
    match event:
        case {"tick": seq, **more}:
            tick = trade(seq=seq, conflated=more.get("cf", 0), snap=more.get("snap", False))
            return list(books.add(tick))
        case {"skipped": [first, last]}:
            return list(books.add_notice(notice("skipped", first, last)))
        case {"gap": [first, last, reason]}:
            return list(books.add_notice(notice("gap", first, last, reason=reason)))
        case {"positions": positions}:
            books.stand_at(positions)
        case {"held": channels}:
            books.keep_positions(Subscription(ch, each) for ch in channels for each in channels[ch])
        case {"unasked": True}:
            books.resume_unasked()
    return []


def notice(kind: str, first: int | None, last: int | None, **more: Any) -> dict[str, Any]:
    return {"T": kind, "ch": "trades", "S": "ES", "from": first, "to": last, **more}


@pytest.mark.parametrize("vector", VECTORS["books"], ids=name_of)
def test_books(vector: dict[str, Any]) -> None:
    books = SequenceAccounts()
    seen = [item for event in vector["events"] for item in enter(books, event)]
    assert shown(seen) == vector["seen"]
    report = books.report(0)
    for name, value in vector["totals"].items():
        assert (report.balanced if name == "balanced" else report.total(name)) == value, name


@pytest.mark.parametrize("vector", VECTORS["conversations"], ids=name_of)
def test_conversations(vector: dict[str, Any]) -> None:
    state = ClientState(Encoding.JSON)
    for step in vector["steps"]:
        match step:
            case {"subscribe": channels, "says": says}:
                wish = RequestedOptions(**step.get("options", {}))
                assert said(state.subscribe(channels, wish=wish)) == says
            case {"unsubscribe": channels, "says": says}:
                assert said(state.unsubscribe(channels)) == says
            case {"hears": messages, "sees": sees}:
                seen, _ = state.receive(json.dumps(messages))
                assert shown(seen) == sees
                question = state.ask_epoch()
                assert (question and said(question)) == step.get("asks")
            case {"cut": True, "says": says}:
                state.connected("tickcast.v1.json")
                assert [said(each) for each in state.subscribe_again()] == says


def said(message: Message) -> Any:
    return json.loads(message[1])


@pytest.mark.parametrize("vector", VECTORS["comebacks"], ids=name_of)
def test_comebacks(vector: dict[str, Any]) -> None:
    books = SequenceAccounts()
    for channel, symbols in vector["streams"].items():
        for symbol in symbols:
            books.place(channel, symbol, "e1", 7)
    wishes = {
        Subscription(channel, pattern): RequestedOptions()
        for channel, patterns in vector["held"].items()
        for pattern in patterns
    }

    def size(fields: Any) -> int:
        return len(json.dumps(fields, separators=(",", ":")))

    assert [*ResumePlanner(books, size, vector["most"]).messages(wishes)] == vector["says"]


@pytest.mark.parametrize("vector", VECTORS["pace"])
def test_pace(vector: dict[str, Any]) -> None:
    pace = Pace(lambda: 1.0)
    delays = []
    for code in vector["refusals"]:
        if code is None:
            pace.granted()
            continue
        delay_s = pace.after_refusal(code)
        delays.append(None if delay_s is None else round(delay_s * 1000))
    assert delays == vector["delays"]


@pytest.mark.parametrize("vector", VECTORS["backoff"])
def test_backoff(vector: dict[str, Any]) -> None:
    backoff = Backoff(lambda: 1.0)
    delays = []
    for call in vector["calls"]:
        if call == ["failure"]:
            delay_s = backoff.after_failure()
        else:
            code, lasted_ms, retry_ms = call
            delay_s = backoff.after_close(code, lasted_ms / 1000, retry_ms / 1000)
        delays.append(None if delay_s is None else round(delay_s * 1000))
    assert delays == vector["delays"]
