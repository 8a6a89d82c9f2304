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
from tickcast.wire.actions import Auth, PlayTape, Publish, SteerReplay, Subscribe
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import Fault
from tickcast.wire.playback import MAX_SPEED, ReplayMode, ReplayState
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Instant, Time

ES = StreamKey("live", "trades", "ES")
NQ = StreamKey("live", "trades", "NQ")


class SessionClient:
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

    def advance(self, ms: int) -> Instant:
        """Advance this session's clock."""
        self.now = Instant(self.now.monotonic_s + ms / 1000, Time(self.now.wall + ms * 1_000_000))
        return self.now

    def resume_reading(self) -> list[dict[str, Any]]:
        self.sink.paused = False
        self.session.drain()
        return self.sink.take()

    def send(self, message: dict[str, Any] | str | bytes) -> list[dict[str, Any]]:
        text = json.dumps(message) if isinstance(message, dict) else message
        request = self.session.handle_message(text, self.now.monotonic_s)
        if self.session.must_resubscribe:
            run_all(self.session.resubscribe())
        if request is not None:
            assert not isinstance(request, Auth | PlayTape | Publish | SteerReplay)
            run_all(self.session.complete(request, lambda: "e1"))
        return self.sink.take()


@pytest.fixture
def hub() -> Hub:
    hub = Hub()
    hub.open_stream(ES, latest=trade("ES", seq=4))
    hub.open_stream(NQ)
    return hub


def test_the_server_sends_the_first_message(hub: Hub) -> None:
    client = SessionClient(hub)
    client.session.greet()
    assert client.sink.take() == [{"T": "success", "msg": "connected"}]


def test_auth_succeeds_without_authentication_and_pong_has_the_time(hub: Hub) -> None:
    client = SessionClient(hub)
    assert client.send({"action": "auth", "key": "a", "secret": "b"}) == [
        {"T": "success", "msg": "authenticated"}
    ]
    assert client.send({"action": "auth", "token": "t", "id": "again"}) == [
        {"T": "success", "msg": "authenticated", "id": "again"}
    ]
    assert client.send({"action": "ping", "id": 1}) == [{"T": "pong", "t": T0.rfc3339(), "id": 1}]


def test_subscriptions_accumulate_until_unsubscribe(hub: Hub) -> None:
    client = SessionClient(hub)
    (reply,) = client.send({"action": "subscribe", "trades": ["NQ", "ES"]})
    assert reply == {"T": "subscription", "trades": ["ES", "NQ"], "quotes": [], "bars": []}
    (reply,) = client.send({"action": "subscribe", "quotes": ["*"]})
    assert reply["trades"] == ["ES", "NQ"]
    assert reply["quotes"] == ["*"]
    (reply,) = client.send({"action": "unsubscribe", "trades": ["ES", "unknown"]})
    assert reply["trades"] == ["NQ"]
    assert client.send({"action": "list"}) == [reply]
    hub.publish(ES, trades(1, "ES", 5))
    hub.publish(NQ, trades(1, "NQ", 1))
    hub.flush(NOW)
    assert [each["S"] for each in client.sink.take()] == ["NQ"]


def test_only_clients_of_extensions_receive_the_epoch(hub: Hub) -> None:
    assert "epoch" not in SessionClient(hub).send({"action": "list"})[0]
    assert SessionClient(hub).send({"action": "list", "id": 1})[0]["epoch"] == "e1"
    assert SessionClient(hub, extended=True).send({"action": "list"})[0]["epoch"] == "e1"


def test_a_snapshot_follows_the_reply_once(hub: Hub) -> None:
    client = SessionClient(hub)
    hub.publish(ES, trades(2, "ES", 5))
    reply, snapshot = client.send({"action": "subscribe", "trades": ["*"], "snapshot": True})
    assert reply["T"] == "subscription"
    assert snapshot["seq"] == 6
    assert snapshot["snap"] is True
    hub.publish(ES, trades(1, "ES", 7))
    hub.flush(NOW)
    (live,) = client.sink.take()
    assert live["seq"] == 7
    assert "snap" not in live
    (reply,) = client.send({"action": "subscribe", "trades": ["ES"], "snapshot": True})
    assert reply["trades"] == ["*", "ES"]


def test_ticks_published_before_subscribe_are_not_sent(hub: Hub) -> None:
    first, second = SessionClient(hub), SessionClient(hub)
    first.send({"action": "subscribe", "trades": ["ES"]})
    hub.publish(ES, trades(1, "ES", 5))
    assert [each["T"] for each in second.send({"action": "subscribe", "trades": ["ES"]})] == [
        "subscription"
    ]
    hub.publish(ES, trades(1, "ES", 6))
    hub.flush(NOW)
    assert [each["seq"] for each in first.sink.take()] == [5, 6]
    assert [each["seq"] for each in second.sink.take()] == [6]


def test_a_request_over_the_limit_changes_nothing(hub: Hub) -> None:
    client = SessionClient(hub)
    client.send({"action": "subscribe", "trades": ["A", "B", "C"]})
    (error,) = client.send({"action": "subscribe", "trades": ["C", "D", "E"], "id": 3})
    assert error["code"] == 405
    assert error["msg"].startswith("symbol limit exceeded")
    assert error["id"] == 3
    assert client.send({"action": "subscribe", "trades": ["D"]})[0]["trades"] == [
        "A",
        "B",
        "C",
        "D",
    ]


def test_replies_use_the_negotiated_encoding(hub: Hub) -> None:
    client = SessionClient(hub, Encoding.MSGPACK)
    assert client.send({"action": "list"})[0]["T"] == "subscription"
    assert client.send(msgpack.packb({"action": "list"}))[0]["T"] == "subscription"
    client.session.greet()
    assert client.sink.written[0][0] == 0x82


def test_errors_change_nothing(hub: Hub) -> None:
    client = SessionClient(hub)
    client.send({"action": "subscribe", "trades": ["ES"]})
    assert client.send("{")[0]["code"] == 400
    assert client.send({"action": "subscribe", "news": ["ES"]})[0]["code"] == 410
    assert set(client.session.subscriptions) == {Subscription("trades", "ES")}


def test_a_refused_request_changes_nothing(hub: Hub) -> None:
    client = SessionClient(hub)
    request = client.session.handle_message('{"action":"subscribe","trades":["ES"],"id":"x"}', 0.0)
    assert isinstance(request, Subscribe)
    assert client.session.required_streams(request) == {Subscription("trades", "ES")}
    client.session.refuse(request, Fault.BROKER_UNAVAILABLE, "try again later")
    (error,) = client.sink.take()
    assert (error["code"], error["id"]) == (503, "x")
    assert client.session.subscriptions == {}


def test_only_clients_of_extensions_receive_a_shutdown_notice(hub: Hub) -> None:
    plain, extended = SessionClient(hub), SessionClient(hub, extended=True)
    assert plain.session.shutdown_frame(100) == b""
    assert b'"retry_ms":100' in extended.session.shutdown_frame(100)
    plain.send({"action": "ping", "id": 1})
    assert plain.session.shutdown_frame(100) != b""


def seqs(messages: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(each["seq"], each.get("cf", 0)) for each in messages]


def publish(hub: Hub, client: SessionClient, first: int, count: int = 1, after_ms: int = 0) -> None:
    hub.publish(ES, trades(count, "ES", first), published_us=T0 // 1000)
    hub.flush(client.advance(after_ms))


def test_conflation_sends_the_latest_once_in_an_interval(hub: Hub) -> None:
    client = SessionClient(hub)
    (reply,) = client.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": 245})
    assert reply["conflate_ms"] == 250
    publish(hub, client, 5)
    assert seqs(client.sink.take()) == [(5, 0)]
    publish(hub, client, 6, count=3, after_ms=100)
    publish(hub, client, 9, after_ms=149)
    assert client.sink.take() == []
    assert hub.due_s() == pytest.approx(NOW.monotonic_s + 0.25)
    hub.flush(client.advance(1))
    assert seqs(client.sink.take()) == [(9, 3)]
    assert hub.due_s() is None
    publish(hub, client, 10, after_ms=1000)
    assert seqs(client.sink.take()) == [(10, 0)]


def test_clients_of_an_interval_share_frames_and_newcomers_get_only_new_ticks(
    hub: Hub,
) -> None:
    first, second, third = SessionClient(hub), SessionClient(hub), SessionClient(hub)
    for client in (first, second):
        client.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": 100})
    publish(hub, first, 5)
    assert first.sink.written[0] is second.sink.written[0]
    publish(hub, first, 6, count=2, after_ms=10)
    _, snapshot = third.send(
        {"action": "subscribe", "trades": ["ES"], "conflate_ms": 100, "snapshot": True}
    )
    assert snapshot["seq"] == 7
    publish(hub, first, 8, after_ms=100)
    assert seqs(first.sink.take()) == [(5, 0), (8, 2)]
    assert seqs(third.sink.take()) == [(8, 0)]
    second.sink.take()
    publish(hub, first, 9, after_ms=100)
    assert third.sink.written[0] is first.sink.written[0] is second.sink.written[0]


def test_intervals_are_rounded_up_when_many_are_in_use(hub: Hub) -> None:
    clients = [SessionClient(hub) for _ in range(INTERVALS_MAX + 1)]
    requested = [10 * place for place in range(11, 11 + len(clients))]
    replies = [
        client.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": ms})[0]["conflate_ms"]
        for client, ms in zip(clients, requested, strict=True)
    ]
    assert replies == [*requested[:-1], 500]
    (reply,) = clients[-1].send({"action": "configure", "conflate_ms": 60_000})
    assert reply["conflate_ms"] == 60_000
    (reply,) = clients[-1].send({"action": "configure", "conflate_ms": requested[3]})
    assert reply["conflate_ms"] == requested[3]
    for client in clients[:2]:
        client.session.release()
    (reply,) = clients[-1].send({"action": "configure", "conflate_ms": requested[0]})
    assert reply["conflate_ms"] == requested[0]


def test_changing_the_interval_loses_no_tick(hub: Hub) -> None:
    client = SessionClient(hub)
    client.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": 100})
    publish(hub, client, 5)
    publish(hub, client, 6, count=2)
    assert seqs(client.sink.take()) == [(5, 0)]
    reply, tick = client.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": 0})
    assert reply["conflate_ms"] == 0
    assert seqs([tick]) == [(7, 1)]
    publish(hub, client, 8)
    assert seqs(client.sink.take()) == [(8, 0)]


def test_an_unspecified_option_keeps_its_value(hub: Hub) -> None:
    client = SessionClient(hub)
    client.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": 100})
    client.send({"action": "subscribe", "trades": ["ES"], "slow": "close"})
    publish(hub, client, 5)
    publish(hub, client, 6, count=2)
    publish(hub, client, 8, after_ms=100)
    assert seqs(client.sink.take()) == [(5, 0), (8, 2)]


def test_the_most_specific_subscription_decides(hub: Hub) -> None:
    client = SessionClient(hub)
    client.send({"action": "subscribe", "trades": ["*"], "conflate_ms": 100})
    client.send({"action": "subscribe", "trades": ["E*"], "conflate_ms": 0})
    publish(hub, client, 5)
    publish(hub, client, 6)
    assert seqs(client.sink.take()) == [(5, 0), (6, 0)]


def test_by_default_trades_are_skipped_and_quotes_conflated(hub: Hub) -> None:
    quotes = StreamKey("live", "quotes", "ES")
    hub.open_stream(quotes)
    client = SessionClient(hub, extended=True, outbox_bytes=300)
    client.send({"action": "subscribe", "trades": ["ES"], "quotes": ["ES"]})
    client.sink.paused = True
    for seq in range(1, 11):
        hub.publish(quotes, [quote(seq=seq)])
        publish(hub, client, 4 + seq)
    assert client.session.outbox.is_slow
    messages = client.resume_reading()
    assert not client.session.outbox.is_slow
    of_quotes = [each for each in messages if each["T"] == "q"]
    assert of_quotes[-1]["seq"] == 10 == len(of_quotes) + of_quotes[-1]["cf"]
    (notice,) = [each for each in messages if each["T"] == "skipped"]
    of_trades = [each for each in messages if each["T"] == "t"]
    assert notice["ch"] == "trades"
    assert (notice["to"], notice["n"]) == (13, 10 - len(of_trades))
    assert of_trades[-1]["seq"] == 14
    assert messages.index(notice) < messages.index(of_trades[-1])
    publish(hub, client, 15)
    assert seqs(client.sink.take()) == [(15, 0)]


def test_a_slow_client_without_extensions_is_disconnected(hub: Hub) -> None:
    plain, requested = (
        SessionClient(hub, outbox_bytes=300),
        SessionClient(hub, extended=True, outbox_bytes=300),
    )
    plain.send({"action": "subscribe", "trades": ["ES"]})
    requested.send({"action": "subscribe", "trades": ["ES"], "slow": "close"})
    for client in (plain, requested):
        client.sink.paused = True
    publish(hub, plain, 5, count=10)
    assert plain.overflows == requested.overflows == 1
    assert plain.resume_reading() == requested.resume_reading() == []


def test_a_client_is_treated_as_extended_after_its_first_extension(hub: Hub) -> None:
    client = SessionClient(hub, outbox_bytes=300)
    client.send({"action": "subscribe", "trades": ["ES"]})
    client.send({"action": "ping"})
    client.sink.paused = True
    publish(hub, client, 5, count=10)
    assert client.overflows == 0
    assert [each["T"] for each in client.resume_reading()] == ["skipped", "t"]


def test_configure_replies_with_the_current_options(hub: Hub) -> None:
    client = SessionClient(hub)
    assert client.send({"action": "configure"}) == [
        {"T": "configured", "heartbeat_ms": 0, "stamps": False, "slow": None, "conflate_ms": 0,
         "replay": False}
    ]  # fmt: skip
    wishes = {"heartbeat_ms": 1000, "stamps": True, "slow": "skip", "conflate_ms": 20}
    assert client.send({"action": "configure", **wishes, "id": 3}) == [
        {"T": "configured", **wishes, "replay": False, "id": 3}
    ]
    assert client.session.heartbeat_ms == 1000
    assert client.send(
        {"action": "configure", "slow": None, "heartbeat_ms": 0, "replay": True}
    ) == [{"T": "configured", **wishes, "slow": None, "heartbeat_ms": 0, "replay": True}]


def test_followers_receive_the_state_of_the_replay(hub: Hub) -> None:
    client = SessionClient(hub)
    state = ReplayState(ReplayMode.PLAYING, T0, MAX_SPEED, T0, Time(T0 + 10**9))
    client.session.send_replay_state(state)
    assert client.sink.take() == []
    client.send({"action": "configure", "replay": True})
    client.session.send_replay_state(state)
    assert client.sink.take() == [
        {"T": "replay", "state": "playing", "position": "2013-09-01T17:00:00.083Z", "speed": "max",
         "from": "2013-09-01T17:00:00.083Z", "to": "2013-09-01T17:00:01.083Z"}
    ]  # fmt: skip
    run_all(client.session.change_grant(Grant(Proof.KEY, "x", Entitlements(feeds=("another",)))))
    client.session.send_replay_state(state)
    assert client.sink.take() == []


def test_defaults_apply_to_existing_subscriptions(hub: Hub) -> None:
    client = SessionClient(hub, outbox_bytes=300)
    client.send({"action": "subscribe", "trades": ["ES"]})
    client.send({"action": "configure", "slow": "conflate", "conflate_ms": 100})
    publish(hub, client, 5)
    publish(hub, client, 6, count=2)
    assert seqs(client.sink.take()) == [(5, 0)]
    client.sink.paused = True
    for first in range(8, 20):
        publish(hub, client, first, after_ms=100)
    messages = client.resume_reading()
    assert sum(1 + each.get("cf", 0) for each in messages) == 14


def test_stamps_contain_the_times_of_publishing_and_writing(hub: Hub) -> None:
    plain, stamped = SessionClient(hub), SessionClient(hub, Encoding.MSGPACK)
    plain.send({"action": "subscribe", "trades": ["ES"]})
    stamped.send({"action": "subscribe", "trades": ["ES"]})
    stamped.send({"action": "configure", "stamps": True})
    publish(hub, stamped, 5, after_ms=3)
    (tick,) = stamped.sink.take()
    assert (tick["tr"], tick["tw"]) == (T0 // 1000, T0 // 1000 + 3000)
    assert list(tick)[-3:] == ["seq", "tr", "tw"]
    (tick,) = plain.sink.take()
    assert "tr" not in tick


def test_heartbeats_report_queue_lag_and_totals(hub: Hub) -> None:
    client = SessionClient(hub, extended=True)
    client.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": 100})
    publish(hub, client, 5)
    publish(hub, client, 6, count=2)
    publish(hub, client, 8, after_ms=100)
    client.sink.take()
    hub.publish(ES, trades(1, "ES", 9), published_us=T0 // 1000)
    client.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": 0})
    publish(hub, client, 10, after_ms=50)
    client.sink.take()
    client.session.send_heartbeat(broker_heard_s=client.now.monotonic_s)
    (beat,) = client.sink.take()
    assert list(beat) == ["T", "t", "queue", "lag_ms", "sent", "merged", "skipped"]
    assert beat | {"t": ""} == {
        "T": "heartbeat", "t": "", "queue": 0, "lag_ms": 150, "sent": 4, "merged": 2, "skipped": 0,
    }  # fmt: skip
    client.advance(2000)
    client.session.send_heartbeat(broker_heard_s=client.now.monotonic_s)
    assert client.sink.take()[0]["lag_ms"] == 0
    heard_s = client.now.monotonic_s
    client.advance(900)
    client.session.send_heartbeat(broker_heard_s=heard_s)
    assert client.sink.take()[0]["lag_ms"] == 0
    client.advance(500)
    client.session.send_heartbeat(broker_heard_s=heard_s)
    assert client.sink.take()[0]["lag_ms"] == 1400


def test_a_slow_client_gets_no_heartbeats_until_it_reads(hub: Hub) -> None:
    client = SessionClient(hub, extended=True, outbox_bytes=300)
    client.send({"action": "subscribe", "trades": ["ES"]})
    client.session.send_heartbeat(broker_heard_s=client.now.monotonic_s)
    client.sink.take()
    client.sink.paused = True
    publish(hub, client, 5, count=10)
    for _ in range(100):
        client.advance(1000)
        client.session.send_heartbeat(broker_heard_s=client.now.monotonic_s)
    assert [each["T"] for each in client.resume_reading()] == ["skipped", "t"]
    client.session.send_heartbeat(broker_heard_s=client.now.monotonic_s)
    (beat,) = client.sink.take()
    assert (beat["sent"], beat["skipped"], beat["queue"]) == (1, 9, 0)


def test_a_client_that_never_reads_replies_is_disconnected(hub: Hub) -> None:
    client = SessionClient(hub, outbox_bytes=1000)
    client.sink.paused = True
    for _ in range(2000):
        client.session.handle_message('{"action":"ping","id":1}', 0.0)
    assert client.overflows == 1


@pytest.mark.parametrize("policy", ["conflate", "skip"])
def test_ticks_of_different_epochs_are_not_merged(hub: Hub, policy: str) -> None:
    slow = SessionClient(hub, extended=True, outbox_bytes=300)
    slow.send({"action": "subscribe", "trades": ["ES"], "slow": policy})
    conflated = SessionClient(hub)
    conflated.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": 1000})
    publish(hub, conflated, 5)
    conflated.sink.take()
    slow.sink.take()
    slow.sink.paused = True
    hub.publish(ES, trades(3, "ES", 6))
    publish(hub, slow, 9, count=2)
    hub.publish(ES, trades(1, "ES", 11))
    publish(hub, slow, 1, count=2)
    messages = slow.resume_reading()
    if policy == "skip":
        assert [(each["from"], each["to"]) for each in messages if "from" in each] == [
            (6, 10), (1, 1),
        ]  # fmt: skip
        assert [each["seq"] for each in messages if "seq" in each] == [11, 2]
    else:
        assert seqs(messages) == [(11, 5), (2, 1)]
    hub.flush(conflated.advance(1000))
    assert seqs(conflated.sink.take()) == [(11, 5), (2, 1)]


def test_conflation_keeps_only_the_latest_tick_in_memory(hub: Hub) -> None:
    client = SessionClient(hub)
    client.send({"action": "subscribe", "trades": ["ES"], "conflate_ms": 60_000})
    publish(hub, client, 5)
    publish(hub, client, 6)
    assert not any(hub.publish(ES, trades(1, "ES", seq)) for seq in range(7, 1000))
    assert hub._published == []


def beat(client: SessionClient, *, after_ms: int, silent_ms: int) -> int:
    """Let time pass and return the `lag_ms` of a heartbeat; Redis was last heard before that."""
    heard_s = client.advance(after_ms).monotonic_s - silent_ms / 1000
    client.session.send_heartbeat(broker_heard_s=heard_s)
    (message,) = client.sink.take()
    lag_ms: int = message["lag_ms"]
    return lag_ms


def test_a_stall_begins_when_the_client_last_read_everything(hub: Hub) -> None:
    client = SessionClient(hub, extended=True)
    client.sink.unsent = 1
    assert beat(client, after_ms=0, silent_ms=100) == 0
    assert beat(client, after_ms=1500, silent_ms=100) == 1500
    client.sink.unsent = 0
    assert beat(client, after_ms=1500, silent_ms=100) == 0


def test_a_stall_begins_with_the_last_message_from_redis(hub: Hub) -> None:
    """Not at the heartbeat that last found it connected: silence is noticed seconds later."""
    client = SessionClient(hub, extended=True)
    assert beat(client, after_ms=0, silent_ms=400) == 0
    beat(client, after_ms=1000, silent_ms=1400)
    assert beat(client, after_ms=1000, silent_ms=2400) == 2400
    never = SessionClient(hub, extended=True)
    for after_ms, lag_ms in ((0, 0), (1500, 1500)):
        never.advance(after_ms)
        never.session.send_heartbeat(broker_heard_s=0.0)
        assert [each["lag_ms"] for each in never.sink.take()] == [lag_ms]
