from __future__ import annotations

import pytest

from feed.fanout.encoded_ticks import FRAME_TICKS_MAX, wire_format_for
from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.fanout.streams import Deliveries, SubscriberGroup, choose_delivery
from tests.builders import NOW, ListSink, messages, quote, trade, trades
from tickcast.wire.actions import DeliveryOptions
from tickcast.wire.encoding import Encoding, build_frame, split_frames
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import StreamKey

ES = StreamKey("live", "trades", "ES")
NQ = StreamKey("live", "trades", "NQ")
ES_QUOTES = StreamKey("live", "quotes", "ES")


class Client:
    def __init__(self, hub: Hub, *names: str, encoding: Encoding = Encoding.JSON) -> None:
        self.hub = hub
        self.encoding = encoding
        self.sink = ListSink()
        self.outbox = Outbox(self.sink, 1 << 20, lambda: None)
        self.subscribe(*names)

    def subscribe(self, *names: str) -> None:
        subscriptions = [
            Subscription(*name.split("=")) if "=" in name else Subscription("trades", name)
            for name in names
        ]
        deliveries = frozenset(
            (each, choose_delivery(each.channel, DeliveryOptions(), True)) for each in subscriptions
        )
        self.hub.switch(self.outbox, self.prepare(deliveries), NOW)

    def prepare(self, deliveries: Deliveries) -> SubscriberGroup | None:
        steps = self.hub.prepare(self.outbox, "live", wire_format_for(self.encoding), deliveries)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                group: SubscriberGroup | None = end.value
                return group

    def seqs(self, symbol: str = "ES") -> list[int]:
        return [each["seq"] for each in self.sink.take() if each["S"] == symbol]


@pytest.fixture
def hub() -> Hub:
    hub = Hub()
    for key in (ES, NQ, ES_QUOTES):
        hub.open_stream(key)
    return hub


def test_a_bug_with_one_client_does_not_affect_the_others(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    def fail(data: bytes) -> None:
        raise ValueError("a bug")

    first, second, third = (Client(hub, "ES") for _ in range(3))
    second.sink.write = fail
    second.outbox.__init__(  # type: ignore[misc]
        second.sink, 1 << 20, lambda: ended.append("overflow"), lambda: ended.append("failure")
    )
    for seq in (1, 2):
        hub.publish(ES, trades(1, first_seq=seq))
        hub.flush(NOW)
        assert (first.seqs(), third.seqs()) == ([seq], [seq])
    assert ended == ["failure"]
    assert second.outbox.closed
    assert caplog.text.count("ValueError: a bug") == 1


def test_each_client_gets_exactly_its_subscriptions(hub: Hub) -> None:
    es, nq, quotes = Client(hub, "ES"), Client(hub, "NQ"), Client(hub, "quotes=ES")
    hub.publish(ES, trades(2, "ES", 1))
    hub.publish(NQ, trades(1, "NQ", 1))
    hub.publish(ES_QUOTES, [quote(seq=1)])
    assert es.sink.written == []
    hub.flush(NOW)
    assert [each["T"] + each["S"] for each in es.sink.take()] == ["tES", "tES"]
    assert [each["T"] + each["S"] for each in nq.sink.take()] == ["tNQ"]
    assert [each["T"] + each["S"] for each in quotes.sink.take()] == ["qES"]


def test_a_flush_is_one_write_of_shared_bytes(hub: Hub) -> None:
    first, second = Client(hub, "ES", "NQ"), Client(hub, "NQ", "ES")
    hub.publish(ES, trades(2, "ES", 1))
    hub.publish(NQ, trades(3, "NQ", 1))
    hub.publish(ES, trades(1, "ES", 3))
    hub.flush(NOW)
    assert len(first.sink.written) == 1
    assert first.sink.written[0] is second.sink.written[0]
    assert first.seqs("ES") == [1, 2, 3]


def test_streams_share_a_frame_up_to_its_limit(hub: Hub) -> None:
    json, msgpack = Client(hub, "*"), Client(hub, "*", encoding=Encoding.MSGPACK)
    hub.publish(ES, trades(3, "ES", 1))
    hub.publish(NQ, trades(20, "NQ", 1))
    hub.flush(NOW)
    for client in (json, msgpack):
        assert len(list(split_frames(client.sink.written[0]))) == 1
        assert [each["S"] for each in client.sink.take()] == ["ES"] * 3 + ["NQ"] * 20
    hub.publish(ES, trades(FRAME_TICKS_MAX - 1, "ES", 4))
    hub.publish(NQ, trades(2, "NQ", 21))
    hub.flush(NOW)
    for client in (json, msgpack):
        (first, second) = split_frames(client.sink.written[0])
        assert len(messages(build_frame(first[1], client.encoding))) == FRAME_TICKS_MAX - 1
        assert len(messages(build_frame(second[1], client.encoding))) == 2


def test_each_encoding_gets_its_own_frames(hub: Hub) -> None:
    json, msgpack = Client(hub, "ES"), Client(hub, "ES", encoding=Encoding.MSGPACK)
    hub.publish(ES, trades(2, "ES", 1))
    hub.flush(NOW)
    assert json.sink.written[0][0] == 0x81
    assert msgpack.sink.written[0][0] == 0x82
    assert json.seqs() == msgpack.seqs() == [1, 2]


def test_many_ticks_are_split_into_frames_that_clients_accept(hub: Hub) -> None:
    client = Client(hub, "ES")
    hub.publish(ES, trades(2 * FRAME_TICKS_MAX + 1, "ES", 1))
    hub.flush(NOW)
    assert len(client.sink.written) == 1
    assert client.seqs() == list(range(1, 2 * FRAME_TICKS_MAX + 2))


def test_overlapping_subscriptions_deliver_once(hub: Hub) -> None:
    client = Client(hub, "ES", "*", "E*")
    hub.publish(ES, trades(1, "ES", 1))
    hub.flush(NOW)
    assert client.seqs() == [1]


def test_wildcards_cover_streams_that_open_later(hub: Hub) -> None:
    everything, prefix, other = Client(hub, "*"), Client(hub, "BTC-*"), Client(hub, "ETH-*")
    key = StreamKey("live", "trades", "BTC-USD")
    assert hub.groups.covers(key)
    assert not hub.groups.covers(StreamKey("live", "bars", "BTC-USD"))
    assert not hub.groups.covers(StreamKey("sim", "trades", "BTC-USD"))
    hub.open_stream(key)
    hub.publish(key, trades(1, "BTC-USD", 1))
    hub.flush(NOW)
    assert everything.seqs("BTC-USD") == prefix.seqs("BTC-USD") == [1]
    assert other.sink.written == []


def test_feeds_are_separate(hub: Hub) -> None:
    client = Client(hub, "*")
    key = StreamKey("sim", "trades", "ES")
    hub.open_stream(key)
    hub.publish(key, trades(1, "ES", 1))
    hub.flush(NOW)
    assert client.sink.written == []


def test_a_change_of_subscriptions_takes_effect_between_ticks(hub: Hub) -> None:
    client = Client(hub, "ES")
    hub.publish(ES, trades(1, "ES", 1))
    client.subscribe("NQ")
    hub.publish(ES, trades(1, "ES", 2))
    hub.publish(NQ, trades(1, "NQ", 1))
    hub.flush(NOW)
    assert [(each["S"], each["seq"]) for each in client.sink.take()] == [("ES", 1), ("NQ", 1)]


def test_a_wildcard_holds_a_stream_but_does_not_name_it(hub: Hub) -> None:
    Client(hub, "*")
    assert hub.is_wanted(ES)
    assert not hub.is_named(ES)
    named = Client(hub, "ES", "N*")
    assert hub.is_named(ES)
    assert not hub.is_named(NQ)
    hub.remove(named.outbox)
    assert not hub.is_named(ES)


def test_removed_clients_get_no_ticks_and_leave_no_state(hub: Hub) -> None:
    client = Client(hub, "ES", "*")
    assert hub.is_wanted(ES)
    assert hub.groups.has_feed("live")
    hub.remove(client.outbox)
    hub.remove(client.outbox)
    assert not hub.is_wanted(ES)
    assert not hub.groups.has_feed("live")
    assert not hub.groups.covers(ES)
    hub.publish(ES, trades(1, "ES", 1))
    hub.flush(NOW)
    assert client.sink.written == []


def test_closed_streams_send_nothing(hub: Hub) -> None:
    client = Client(hub, "*")
    hub.publish(ES, trades(1, "ES", 1))
    hub.close_stream(ES)
    hub.close_stream(ES)
    assert not hub.publish(ES, trades(1, "ES", 2))
    hub.flush(NOW)
    assert client.sink.written == []
    hub.remove(client.outbox)


def test_the_latest_tick_is_kept_even_without_clients(hub: Hub) -> None:
    hub.open_stream(NQ, latest=trade("NQ", seq=9))
    hub.publish(ES, trades(3, "ES", 1))
    everything = [Subscription("trades", "*")]
    streams = list(hub.streams.covered("live", everything))
    assert {(each.key, each.latest and each.latest.seq) for each in streams} == {(ES, 3), (NQ, 9)}
    named = hub.streams.covered("live", [Subscription("trades", "NQ")])
    assert [each.key for each in named] == [NQ]
    others = hub.streams.covered("live", everything, held=[Subscription("trades", "E*")])
    assert [each.key for each in others] == [NQ]


def test_publish_returns_whether_a_flush_is_needed(hub: Hub) -> None:
    assert not hub.publish(ES, trades(1, "ES", 1))
    client = Client(hub, "ES")
    assert hub.publish(ES, trades(1, "ES", 2))
    assert not hub.publish(ES, [])
    hub.flush(NOW)
    assert client.seqs() == [2]


def test_the_lag_is_that_of_the_last_batch_for_a_second(hub: Hub) -> None:
    assert hub.lag_ms(NOW) == 0
    Client(hub, "ES")
    hub.publish(ES, trades(2, "ES", 1), NOW.wall_us - 9_000)
    hub.publish(ES, trades(3, "ES", 3), NOW.wall_us - 5_000)
    hub.publish(ES, trades(1, "ES", 6), 0)
    hub.flush(NOW)
    hub.flush(NOW)
    assert hub.lag_ms(NOW) == 5
    assert hub.lag_ms(NOW._replace(monotonic_s=NOW.monotonic_s + 1)) == 5
    assert hub.lag_ms(NOW._replace(monotonic_s=NOW.monotonic_s + 1.1)) == 0
