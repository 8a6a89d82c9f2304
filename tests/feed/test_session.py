from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from feed.errors import Fault
from feed.hub import Hub
from feed.outbox import Outbox
from feed.session import Session
from feed.ticks import Encoding, StreamKey, Subscription
from feed.times import Time
from tests.builders import ListSink, trade, trades

ES = StreamKey("live", "trades", "ES")
NQ = StreamKey("live", "trades", "NQ")


class Talk:
    """A session whose streams are always ready."""

    def __init__(
        self, hub: Hub, encoding: Encoding = Encoding.JSON, *, extended: bool = False
    ) -> None:
        self.sink = ListSink()
        self.session = Session(
            hub,
            Outbox(self.sink, 1 << 20, lambda: None),
            "live",
            encoding,
            extended=extended,
            subscriptions_max=4,
            clock=lambda: Time(0),
        )

    def say(self, message: dict[str, Any] | str | bytes) -> list[dict[str, Any]]:
        text = json.dumps(message) if isinstance(message, dict) else message
        request = self.session.read(text)
        if request is not None:
            self.session.complete(request, "e1")
        return self.sink.take()


@pytest.fixture
def hub() -> Hub:
    hub = Hub()
    hub.open_stream(ES, latest=trade("ES", seq=4))
    hub.open_stream(NQ)
    return hub


def test_the_server_speaks_first(hub: Hub) -> None:
    talk = Talk(hub)
    talk.session.greet()
    assert talk.sink.take() == [{"T": "success", "msg": "connected"}]


def test_auth_always_succeeds_and_ping_tells_the_time(hub: Hub) -> None:
    talk = Talk(hub)
    assert talk.say({"action": "auth", "key": "a", "secret": "b"}) == [
        {"T": "success", "msg": "authenticated"}
    ]
    assert talk.say({"action": "auth", "token": "t", "id": "again"}) == [
        {"T": "success", "msg": "authenticated", "id": "again"}
    ]
    assert talk.say({"action": "ping", "id": 1}) == [
        {"T": "pong", "t": "1970-01-01T00:00:00Z", "id": 1}
    ]


def test_subscriptions_add_up_and_go(hub: Hub) -> None:
    talk = Talk(hub)
    (reply,) = talk.say({"action": "subscribe", "trades": ["NQ", "ES"]})
    assert reply == {"T": "subscription", "trades": ["ES", "NQ"], "quotes": [], "bars": []}
    (reply,) = talk.say({"action": "subscribe", "quotes": ["*"]})
    assert reply["trades"] == ["ES", "NQ"]
    assert reply["quotes"] == ["*"]
    (reply,) = talk.say({"action": "unsubscribe", "trades": ["ES", "unknown"]})
    assert reply["trades"] == ["NQ"]
    assert talk.say({"action": "list"}) == [reply]
    hub.publish(ES, trades(1, "ES", 5))
    hub.publish(NQ, trades(1, "NQ", 1))
    hub.flush()
    assert [each["S"] for each in talk.sink.take()] == ["NQ"]


def test_the_epoch_is_for_those_who_know_of_it(hub: Hub) -> None:
    assert "epoch" not in Talk(hub).say({"action": "list"})[0]
    assert Talk(hub).say({"action": "list", "id": 1})[0]["epoch"] == "e1"
    assert Talk(hub, extended=True).say({"action": "list"})[0]["epoch"] == "e1"


def test_a_snapshot_comes_after_the_reply_and_once(hub: Hub) -> None:
    talk = Talk(hub)
    hub.publish(ES, trades(2, "ES", 5))
    reply, snapshot = talk.say({"action": "subscribe", "trades": ["*"], "snapshot": True})
    assert reply["T"] == "subscription"
    assert snapshot["seq"] == 6
    assert snapshot["snap"] is True
    hub.publish(ES, trades(1, "ES", 7))
    hub.flush()
    (live,) = talk.sink.take()
    assert live["seq"] == 7
    assert "snap" not in live
    (reply,) = talk.say({"action": "subscribe", "trades": ["ES"], "snapshot": True})
    assert reply["trades"] == ["*", "ES"]


def test_ticks_on_their_way_when_a_client_subscribes_are_not_for_it(hub: Hub) -> None:
    first, second = Talk(hub), Talk(hub)
    first.say({"action": "subscribe", "trades": ["ES"]})
    hub.publish(ES, trades(1, "ES", 5))
    assert [each["T"] for each in second.say({"action": "subscribe", "trades": ["ES"]})] == [
        "subscription"
    ]
    hub.publish(ES, trades(1, "ES", 6))
    hub.flush()
    assert [each["seq"] for each in first.sink.take()] == [5, 6]
    assert [each["seq"] for each in second.sink.take()] == [6]


def test_over_the_limit_nothing_is_applied(hub: Hub) -> None:
    talk = Talk(hub)
    talk.say({"action": "subscribe", "trades": ["A", "B", "C"]})
    (error,) = talk.say({"action": "subscribe", "trades": ["C", "D", "E"], "id": 3})
    assert error["code"] == 405
    assert error["msg"].startswith("symbol limit exceeded")
    assert error["id"] == 3
    assert talk.say({"action": "subscribe", "trades": ["D"]})[0]["trades"] == ["A", "B", "C", "D"]


def test_replies_come_in_the_clients_encoding_whatever_it_sent(hub: Hub) -> None:
    talk = Talk(hub, Encoding.MSGPACK)
    assert talk.say({"action": "list"})[0]["T"] == "subscription"
    assert talk.say(msgpack.packb({"action": "list"}))[0]["T"] == "subscription"
    talk.session.greet()
    assert talk.sink.written[0][0] == 0x82


def test_errors_leave_everything_as_it_was(hub: Hub) -> None:
    talk = Talk(hub)
    talk.say({"action": "subscribe", "trades": ["ES"]})
    assert talk.say("{")[0]["code"] == 400
    assert talk.say({"action": "configure", "id": 2})[0]["code"] == 410
    assert talk.session.subscriptions == {Subscription("trades", "ES")}


def test_a_refused_request_applies_nothing(hub: Hub) -> None:
    talk = Talk(hub)
    request = talk.session.read('{"action":"subscribe","trades":["ES"],"id":"x"}')
    assert request is not None
    assert talk.session.wanted_by(request) == {Subscription("trades", "ES")}
    talk.session.refuse(request, Fault.BROKER_UNAVAILABLE, "try again later")
    (error,) = talk.sink.take()
    assert (error["code"], error["id"]) == (503, "x")
    assert talk.session.subscriptions == frozenset()


def test_only_clients_that_know_extensions_hear_of_a_shutdown(hub: Hub) -> None:
    plain, extended = Talk(hub), Talk(hub, extended=True)
    assert plain.session.farewell(100) == b""
    assert b'"retry_ms":100' in extended.session.farewell(100)
    plain.say({"action": "ping", "id": 1})
    assert plain.session.farewell(100) != b""
