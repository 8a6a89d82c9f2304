"""Test vectors shared by this client and the web page's client: see `dashboard/*.test.js`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.builders import trade
from tickcast.client.accounts import Gap, Position, SequenceAccounts
from tickcast.client.backoff import RateLimitDelays, ReconnectDelays
from tickcast.client.messages import Event, Heartbeat
from tickcast.client.state import ClientState, Message, RequestedOptions, ResumePlanner
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
    ticks_and_gaps = [item for item in items if not isinstance(item, ReplayState | Heartbeat)]
    return [list(item[2:]) if isinstance(item, Gap) else item.seq for item in ticks_and_gaps]


def add_event(accounts: SequenceAccounts, event: dict[str, Any]) -> list[Tick | Gap]:
    match event:
        case {"tick": seq, **more}:
            tick = trade(seq=seq, conflated=more.get("cf", 0), snap=more.get("snap", False))
            return list(accounts.add_tick(tick))
        case {"skipped": [first, last]}:
            return list(accounts.add_notice(notice("skipped", first, last)))
        case {"gap": [first, last, reason]}:
            return list(accounts.add_notice(notice("gap", first, last, reason=reason)))
        case {"positions": positions}:
            accounts.set_positions(positions)
        case {"subscribed": channels}:
            accounts.end_runs_outside(
                Subscription(ch, each) for ch in channels for each in channels[ch]
            )
        case {"unresumed": True}:
            accounts.mark_unresumed()
    return []


def notice(kind: str, first: int | None, last: int | None, **more: Any) -> dict[str, Any]:
    return {"T": kind, "ch": "trades", "S": "ES", "from": first, "to": last, **more}


@pytest.mark.parametrize("vector", VECTORS["accounts"], ids=name_of)
def test_accounts(vector: dict[str, Any]) -> None:
    accounts = SequenceAccounts()
    found = [item for event in vector["events"] for item in add_event(accounts, event)]
    assert shown(found) == vector["items"]
    report = accounts.report(0)
    for name, value in vector["totals"].items():
        assert (report.balanced if name == "balanced" else report.total(name)) == value, name


@pytest.mark.parametrize("vector", VECTORS["conversations"], ids=name_of)
def test_conversations(vector: dict[str, Any]) -> None:
    state = ClientState(Encoding.JSON)
    for step in vector["steps"]:
        match step:
            case {"subscribe": channels, "sends": sends}:
                options = RequestedOptions(**step.get("options", {}))
                assert sent_fields(state.subscribe(channels, options=options)) == sends
            case {"unsubscribe": channels, "sends": sends}:
                assert sent_fields(state.unsubscribe(channels)) == sends
            case {"receives": messages, "items": items}:
                found, _ = state.receive_frame(json.dumps(messages))
                assert shown(found) == items
                request = state.request_epoch()
                assert (request and sent_fields(request)) == step.get("requests")
            case {"cut": True, "sends": sends}:
                state.begin_connection("tickcast.v1.json")
                assert [sent_fields(each) for each in state.restore()] == sends


def sent_fields(message: Message) -> Any:
    return json.loads(message.frame)


@pytest.mark.parametrize("vector", VECTORS["resumes"], ids=name_of)
def test_resumes(vector: dict[str, Any]) -> None:
    accounts = SequenceAccounts()
    for channel, symbols in vector["streams"].items():
        for symbol in symbols:
            accounts.set_position(Position(channel, symbol, "e1", 7))
    requested = {
        Subscription(channel, pattern): RequestedOptions()
        for channel, patterns in vector["subscribed"].items()
        for pattern in patterns
    }

    def size(fields: Any) -> int:
        return len(json.dumps(fields, separators=(",", ":")))

    assert [*ResumePlanner(accounts, size, vector["max_bytes"]).messages(requested)] == vector[
        "sends"
    ]


@pytest.mark.parametrize("vector", VECTORS["rate_limits"])
def test_rate_limit_delays(vector: dict[str, Any]) -> None:
    limiter = RateLimitDelays(lambda: 1.0)
    delays = []
    for code in vector["refusals"]:
        if code is None:
            limiter.reset()
            continue
        delay_s = limiter.after_refusal(code)
        delays.append(None if delay_s is None else round(delay_s * 1000))
    assert delays == vector["delays"]


@pytest.mark.parametrize("vector", VECTORS["backoff"])
def test_reconnect_delays(vector: dict[str, Any]) -> None:
    backoff = ReconnectDelays(lambda: 1.0)
    delays = []
    for call in vector["calls"]:
        if call == ["failure"]:
            delay_s = backoff.after_failure()
        else:
            code, lasted_ms, retry_ms = call
            delay_s = backoff.after_close(code, lasted_ms / 1000, retry_ms / 1000)
        delays.append(None if delay_s is None else round(delay_s * 1000))
    assert delays == vector["delays"]
