from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from feed.access.entitlements import Entitlements, Grant, Proof
from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.fanout.registry import INTERVALS_MAX
from feed.server.session import Session
from feed.transport.loop_time import run_all
from tests.builders import NOW, T0, ListSink, quote, trade, trades
from tickcast.wire.actions import Auth, PlayTape, SteerReplay, Subscribe
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import Fault
from tickcast.wire.playback import MAX_SPEED, ReplayMode, ReplayState
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Instant, Time

ES = StreamKey("live", "trades", "ES")
NQ = StreamKey("live", "trades", "NQ")


class Talk:
    """A session whose streams are always ready."""

    def __init__(
        self,
        hub: Hub,
        encoding: Encoding = Encoding.JSON,
        *,
        extended: bool = False,
        outbox_bytes: int = 1 << 20,
    ) -> None:
        self.sink = ListSink()
        self.now = NOW
        self.overflows = 0
        self.session = Session(
            hub,
            Outbox(self.sink, outbox_bytes, self.overflow),
            "live",
            encoding,
            extended=extended,
            subscriptions_max=4,
            clock=lambda: self.now,
        )

    def overflow(self) -> None:
        self.overflows += 1

    def later(self, ms: int) -> Instant:
        """Advance this session's clock."""
        self.now = Instant(self.now.monotonic_s + ms / 1000, Time(self.now.wall + ms * 1_000_000))
        return self.now

    def read_again(self) -> list[dict[str, Any]]:
        self.sink.paused = False
        self.session.drain()
        return self.sink.take()

    def say(self, message: dict[str, Any] | str | bytes) -> list[dict[str, Any]]:
        text = json.dumps(message) if isinstance(message, dict) else message
        request = self.session.handle_message(text)
        if self.session.must_resubscribe:
            run_all(self.session.resubscribe())
        if request is not None:
            assert not isinstance(request, Auth | PlayTape | SteerReplay)
            run_all(self.session.complete(request, lambda: "e1"))
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
    assert talk.say({"action": "ping", "id": 1}) == [{"T": "pong", "t": T0.rfc3339(), "id": 1}]


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
    hub.flush(NOW)
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
    hub.flush(NOW)
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
    hub.flush(NOW)
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
    assert talk.say({"action": "subscribe", "news": ["ES"]})[0]["code"] == 410
    assert set(talk.session.subscriptions) == {Subscription("trades", "ES")}


def test_a_refused_request_applies_nothing(hub: Hub) -> None:
    talk = Talk(hub)
    request = talk.session.handle_message('{"action":"subscribe","trades":["ES"],"id":"x"}')
    assert isinstance(request, Subscribe)
    assert talk.session.required_streams(request) == {Subscription("trades", "ES")}
    talk.session.refuse(request, Fault.BROKER_UNAVAILABLE, "try again later")
    (error,) = talk.sink.take()
    assert (error["code"], error["id"]) == (503, "x")
    assert talk.session.subscriptions == {}


def test_only_clients_that_know_extensions_hear_of_a_shutdown(hub: Hub) -> None:
    plain, extended = Talk(hub), Talk(hub, extended=True)
    assert plain.session.shutdown_frame(100) == b""
    assert b'"retry_ms":100' in extended.session.shutdown_frame(100)
    plain.say({"action": "ping", "id": 1})
    assert plain.session.shutdown_frame(100) != b""


def seqs(messages: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(each["seq"], each.get("cf", 0)) for each in messages]


def publish(hub: Hub, talk: Talk, first: int, count: int = 1, later_ms: int = 0) -> None:
    hub.publish(ES, trades(count, "ES", first), published_us=T0 // 1000)
    hub.flush(talk.later(later_ms))


def test_conflation_sends_the_latest_once_in_an_interval(hub: Hub) -> None:
    talk = Talk(hub)
    (reply,) = talk.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": 245})
    assert reply["conflate_ms"] == 250
    publish(hub, talk, 5)
    assert seqs(talk.sink.take()) == [(5, 0)]
    publish(hub, talk, 6, count=3, later_ms=100)
    publish(hub, talk, 9, later_ms=149)
    assert talk.sink.take() == []
    assert hub.due_s() == pytest.approx(NOW.monotonic_s + 0.25)
    hub.flush(talk.later(1))
    assert seqs(talk.sink.take()) == [(9, 3)]
    assert hub.due_s() is None
    publish(hub, talk, 10, later_ms=1000)
    assert seqs(talk.sink.take()) == [(10, 0)]


def test_clients_of_one_interval_share_its_frames_and_newcomers_get_only_what_is_new(
    hub: Hub,
) -> None:
    first, second, third = Talk(hub), Talk(hub), Talk(hub)
    for talk in (first, second):
        talk.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": 100})
    publish(hub, first, 5)
    assert first.sink.written[0] is second.sink.written[0]
    publish(hub, first, 6, count=2, later_ms=10)
    _, snapshot = third.say(
        {"action": "subscribe", "trades": ["ES"], "conflate_ms": 100, "snapshot": True}
    )
    assert snapshot["seq"] == 7
    publish(hub, first, 8, later_ms=100)
    assert seqs(first.sink.take()) == [(5, 0), (8, 2)]
    assert seqs(third.sink.take()) == [(8, 0)]
    second.sink.take()
    publish(hub, first, 9, later_ms=100)
    assert third.sink.written[0] is first.sink.written[0] is second.sink.written[0]


def test_of_very_many_intervals_the_later_ones_are_rounded_up(hub: Hub) -> None:
    talks = [Talk(hub) for _ in range(INTERVALS_MAX + 1)]
    asked = [10 * place for place in range(11, 11 + len(talks))]
    replies = [
        talk.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": ms})[0]["conflate_ms"]
        for talk, ms in zip(talks, asked, strict=True)
    ]
    assert replies == [*asked[:-1], 500]
    (reply,) = talks[-1].say({"action": "configure", "conflate_ms": 60_000})
    assert reply["conflate_ms"] == 60_000
    (reply,) = talks[-1].say({"action": "configure", "conflate_ms": asked[3]})
    assert reply["conflate_ms"] == asked[3]
    for talk in talks[:2]:
        talk.session.release()
    (reply,) = talks[-1].say({"action": "configure", "conflate_ms": asked[0]})
    assert reply["conflate_ms"] == asked[0]


def test_a_change_of_the_interval_leaves_nothing_out(hub: Hub) -> None:
    talk = Talk(hub)
    talk.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": 100})
    publish(hub, talk, 5)
    publish(hub, talk, 6, count=2)
    assert seqs(talk.sink.take()) == [(5, 0)]
    reply, tick = talk.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": 0})
    assert reply["conflate_ms"] == 0
    assert seqs([tick]) == [(7, 1)]
    publish(hub, talk, 8)
    assert seqs(talk.sink.take()) == [(8, 0)]


def test_an_option_that_is_left_out_stays_as_it_was(hub: Hub) -> None:
    talk = Talk(hub)
    talk.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": 100})
    talk.say({"action": "subscribe", "trades": ["ES"], "slow": "close"})
    publish(hub, talk, 5)
    publish(hub, talk, 6, count=2)
    publish(hub, talk, 8, later_ms=100)
    assert seqs(talk.sink.take()) == [(5, 0), (8, 2)]


def test_the_closest_subscription_decides(hub: Hub) -> None:
    talk = Talk(hub)
    talk.say({"action": "subscribe", "trades": ["*"], "conflate_ms": 100})
    talk.say({"action": "subscribe", "trades": ["E*"], "conflate_ms": 0})
    publish(hub, talk, 5)
    publish(hub, talk, 6)
    assert seqs(talk.sink.take()) == [(5, 0), (6, 0)]


def test_trades_are_skipped_and_quotes_conflated_where_nothing_else_is_said(hub: Hub) -> None:
    quotes = StreamKey("live", "quotes", "ES")
    hub.open_stream(quotes)
    talk = Talk(hub, extended=True, outbox_bytes=300)
    talk.say({"action": "subscribe", "trades": ["ES"], "quotes": ["ES"]})
    talk.sink.paused = True
    for seq in range(1, 11):
        hub.publish(quotes, [quote(seq=seq)])
        publish(hub, talk, 4 + seq)
    assert talk.session.outbox.is_slow
    messages = talk.read_again()
    assert not talk.session.outbox.is_slow
    of_quotes = [each for each in messages if each["T"] == "q"]
    assert of_quotes[-1]["seq"] == 10 == len(of_quotes) + of_quotes[-1]["cf"]
    (notice,) = [each for each in messages if each["T"] == "skipped"]
    of_trades = [each for each in messages if each["T"] == "t"]
    assert notice["ch"] == "trades"
    assert (notice["to"], notice["n"]) == (13, 10 - len(of_trades))
    assert of_trades[-1]["seq"] == 14
    assert messages.index(notice) < messages.index(of_trades[-1])
    publish(hub, talk, 15)
    assert seqs(talk.sink.take()) == [(15, 0)]


def test_a_client_that_knows_no_extension_is_closed_instead(hub: Hub) -> None:
    plain, asked = Talk(hub, outbox_bytes=300), Talk(hub, extended=True, outbox_bytes=300)
    plain.say({"action": "subscribe", "trades": ["ES"]})
    asked.say({"action": "subscribe", "trades": ["ES"], "slow": "close"})
    for talk in (plain, asked):
        talk.sink.paused = True
    publish(hub, plain, 5, count=10)
    assert plain.overflows == asked.overflows == 1
    assert plain.read_again() == asked.read_again() == []


def test_a_client_turns_out_to_know_extensions(hub: Hub) -> None:
    talk = Talk(hub, outbox_bytes=300)
    talk.say({"action": "subscribe", "trades": ["ES"]})
    talk.say({"action": "ping"})
    talk.sink.paused = True
    publish(hub, talk, 5, count=10)
    assert talk.overflows == 0
    assert [each["T"] for each in talk.read_again()] == ["skipped", "t"]


def test_configure_answers_with_what_holds(hub: Hub) -> None:
    talk = Talk(hub)
    assert talk.say({"action": "configure"}) == [
        {"T": "configured", "heartbeat_ms": 0, "stamps": False, "slow": None, "conflate_ms": 0,
         "replay": False}
    ]  # fmt: skip
    wishes = {"heartbeat_ms": 1000, "stamps": True, "slow": "skip", "conflate_ms": 20}
    assert talk.say({"action": "configure", **wishes, "id": 3}) == [
        {"T": "configured", **wishes, "replay": False, "id": 3}
    ]
    assert talk.session.heartbeat_ms == 1000
    assert talk.say({"action": "configure", "slow": None, "heartbeat_ms": 0, "replay": True}) == [
        {"T": "configured", **wishes, "slow": None, "heartbeat_ms": 0, "replay": True}
    ]


def test_who_wants_it_is_told_where_the_replay_stands(hub: Hub) -> None:
    talk = Talk(hub)
    state = ReplayState(ReplayMode.PLAYING, T0, MAX_SPEED, T0, Time(T0 + 10**9))
    talk.session.send_replay_state(state)
    assert talk.sink.take() == []
    talk.say({"action": "configure", "replay": True})
    talk.session.send_replay_state(state)
    assert talk.sink.take() == [
        {"T": "replay", "state": "playing", "position": "2013-09-01T17:00:00.083Z", "speed": "max",
         "from": "2013-09-01T17:00:00.083Z", "to": "2013-09-01T17:00:01.083Z"}
    ]  # fmt: skip
    run_all(talk.session.change_grant(Grant(Proof.KEY, "x", Entitlements(feeds=("another",)))))
    talk.session.send_replay_state(state)
    assert talk.sink.take() == []


def test_defaults_hold_for_what_is_subscribed_already(hub: Hub) -> None:
    talk = Talk(hub, outbox_bytes=300)
    talk.say({"action": "subscribe", "trades": ["ES"]})
    talk.say({"action": "configure", "slow": "conflate", "conflate_ms": 100})
    publish(hub, talk, 5)
    publish(hub, talk, 6, count=2)
    assert seqs(talk.sink.take()) == [(5, 0)]
    talk.sink.paused = True
    for first in range(8, 20):
        publish(hub, talk, first, later_ms=100)
    messages = talk.read_again()
    assert sum(1 + each.get("cf", 0) for each in messages) == 14


def test_stamps_tell_when_a_tick_was_handed_over_and_written(hub: Hub) -> None:
    plain, stamped = Talk(hub), Talk(hub, Encoding.MSGPACK)
    plain.say({"action": "subscribe", "trades": ["ES"]})
    stamped.say({"action": "subscribe", "trades": ["ES"]})
    stamped.say({"action": "configure", "stamps": True})
    publish(hub, stamped, 5, later_ms=3)
    (tick,) = stamped.sink.take()
    assert (tick["tr"], tick["tw"]) == (T0 // 1000, T0 // 1000 + 3000)
    assert list(tick)[-3:] == ["seq", "tr", "tw"]
    (tick,) = plain.sink.take()
    assert "tr" not in tick


def test_heartbeats_say_how_the_client_is_doing(hub: Hub) -> None:
    talk = Talk(hub, extended=True)
    talk.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": 100})
    publish(hub, talk, 5)
    publish(hub, talk, 6, count=2)
    publish(hub, talk, 8, later_ms=100)
    talk.sink.take()
    hub.publish(ES, trades(1, "ES", 9), published_us=T0 // 1000)
    talk.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": 0})
    publish(hub, talk, 10, later_ms=50)
    talk.sink.take()
    talk.session.send_heartbeat(broker_heard_s=talk.now.monotonic_s)
    (beat,) = talk.sink.take()
    assert list(beat) == ["T", "t", "queue", "lag_ms", "sent", "merged", "skipped"]
    assert beat | {"t": ""} == {
        "T": "heartbeat", "t": "", "queue": 0, "lag_ms": 150, "sent": 4, "merged": 2, "skipped": 0,
    }  # fmt: skip
    talk.later(2000)
    talk.session.send_heartbeat(broker_heard_s=talk.now.monotonic_s)
    assert talk.sink.take()[0]["lag_ms"] == 0
    heard_s = talk.now.monotonic_s
    talk.later(900)
    talk.session.send_heartbeat(broker_heard_s=heard_s)
    assert talk.sink.take()[0]["lag_ms"] == 0
    talk.later(500)
    talk.session.send_heartbeat(broker_heard_s=heard_s)
    assert talk.sink.take()[0]["lag_ms"] == 1400


def test_a_slow_client_gets_no_more_heartbeats_until_it_reads(hub: Hub) -> None:
    talk = Talk(hub, extended=True, outbox_bytes=300)
    talk.say({"action": "subscribe", "trades": ["ES"]})
    talk.session.send_heartbeat(broker_heard_s=talk.now.monotonic_s)
    talk.sink.take()
    talk.sink.paused = True
    publish(hub, talk, 5, count=10)
    for _ in range(100):
        talk.later(1000)
        talk.session.send_heartbeat(broker_heard_s=talk.now.monotonic_s)
    assert [each["T"] for each in talk.read_again()] == ["skipped", "t"]
    talk.session.send_heartbeat(broker_heard_s=talk.now.monotonic_s)
    (beat,) = talk.sink.take()
    assert (beat["sent"], beat["skipped"], beat["queue"]) == (1, 9, 0)


def test_a_client_that_asks_and_never_reads_is_closed(hub: Hub) -> None:
    talk = Talk(hub, outbox_bytes=1000)
    talk.sink.paused = True
    for _ in range(2000):
        talk.session.handle_message('{"action":"ping","id":1}')
    assert talk.overflows == 1


@pytest.mark.parametrize("policy", ["conflate", "skip"])
def test_numberings_are_not_mixed_when_a_new_one_begins(hub: Hub, policy: str) -> None:
    slow = Talk(hub, extended=True, outbox_bytes=300)
    slow.say({"action": "subscribe", "trades": ["ES"], "slow": policy})
    conflated = Talk(hub)
    conflated.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": 1000})
    publish(hub, conflated, 5)
    conflated.sink.take()
    slow.sink.take()
    slow.sink.paused = True
    hub.publish(ES, trades(3, "ES", 6))
    publish(hub, slow, 9, count=2)
    hub.publish(ES, trades(1, "ES", 11))
    publish(hub, slow, 1, count=2)
    messages = slow.read_again()
    if policy == "skip":
        assert [(each["from"], each["to"]) for each in messages if "from" in each] == [
            (6, 10), (1, 1),
        ]  # fmt: skip
        assert [each["seq"] for each in messages if "seq" in each] == [11, 2]
    else:
        assert seqs(messages) == [(11, 5), (2, 1)]
    hub.flush(conflated.later(1000))
    assert seqs(conflated.sink.take()) == [(11, 5), (2, 1)]


def test_what_is_conflated_for_all_holds_nothing_but_the_latest(hub: Hub) -> None:
    talk = Talk(hub)
    talk.say({"action": "subscribe", "trades": ["ES"], "conflate_ms": 60_000})
    publish(hub, talk, 5)
    publish(hub, talk, 6)
    assert not any(hub.publish(ES, trades(1, "ES", seq)) for seq in range(7, 1000))
    assert hub._published == []


def beat(talk: Talk, *, after_ms: int, silent_ms: int) -> int:
    """Let time pass and return the `lag_ms` of a heartbeat; Redis was last heard before that."""
    heard_s = talk.later(after_ms).monotonic_s - silent_ms / 1000
    talk.session.send_heartbeat(broker_heard_s=heard_s)
    (message,) = talk.sink.take()
    lag_ms: int = message["lag_ms"]
    return lag_ms


def test_a_stall_begins_when_the_client_last_read_everything(hub: Hub) -> None:
    talk = Talk(hub, extended=True)
    talk.sink.unsent = 1
    assert beat(talk, after_ms=0, silent_ms=100) == 0
    assert beat(talk, after_ms=1500, silent_ms=100) == 1500
    talk.sink.unsent = 0
    assert beat(talk, after_ms=1500, silent_ms=100) == 0


def test_a_stall_begins_with_the_last_message_from_redis(hub: Hub) -> None:
    """Not at the heartbeat that last found it connected: silence is noticed seconds later."""
    talk = Talk(hub, extended=True)
    assert beat(talk, after_ms=0, silent_ms=400) == 0
    beat(talk, after_ms=1000, silent_ms=1400)
    assert beat(talk, after_ms=1000, silent_ms=2400) == 2400
    never = Talk(hub, extended=True)
    for after_ms, lag_ms in ((0, 0), (1500, 1500)):
        never.later(after_ms)
        never.session.send_heartbeat(broker_heard_s=0.0)
        assert [each["lag_ms"] for each in never.sink.take()] == [lag_ms]
