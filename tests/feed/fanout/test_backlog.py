from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from feed.fanout.backlog import Backlog
from feed.fanout.encoded_ticks import FRAME_TICKS_MAX, TickBatch, wire_format_for
from tests.builders import messages, trade, trades
from tickcast.client.accounts import StreamAccount
from tickcast.wire.actions import SlowPolicy
from tickcast.wire.encoding import Encoding
from tickcast.wire.sequence import NEW_EPOCH
from tickcast.wire.ticks import StreamKey, Tick

ES = StreamKey("live", "trades", "ES")
JSON = wire_format_for(Encoding.JSON)


def batch(*ticks: Tick, key: StreamKey = ES) -> TickBatch:
    return TickBatch(key, ticks, [7] * len(ticks))


def pop_messages(backlog: Backlog) -> list[dict[str, Any]]:
    data, _ = backlog.pop_frames(written_us=9)
    return messages(data)


def test_conflation_keeps_the_latest_tick_and_counts_the_others() -> None:
    backlog = Backlog(JSON)
    backlog.add_batch(batch(*trades(3, "ES", 11)), SlowPolicy.CONFLATE)
    backlog.add_batch(batch(*trades(2, "ES", 14)), SlowPolicy.CONFLATE)
    data, totals = backlog.pop_frames(0)
    (tick,) = messages(data)
    assert (tick["seq"], tick["cf"]) == (15, 4)
    assert (totals.sent, totals.merged, totals.skipped) == (1, 4, 0)
    assert not backlog


def test_skipping_announces_the_missed_ticks_and_sends_the_latest() -> None:
    backlog = Backlog(JSON)
    backlog.add_batch(batch(*trades(3, "ES", 11)), SlowPolicy.SKIP)
    backlog.add_batch(batch(*trades(2, "ES", 14)), SlowPolicy.SKIP)
    data, totals = backlog.pop_frames(0)
    notice, tick = messages(data)
    assert notice == {"T": "skipped", "ch": "trades", "S": "ES", "from": 11, "to": 14, "n": 4}
    assert tick["seq"] == 15
    assert "cf" not in tick
    assert (totals.sent, totals.merged, totals.skipped) == (1, 0, 4)


@pytest.mark.parametrize("policy", [SlowPolicy.CONFLATE, SlowPolicy.SKIP])
def test_a_single_tick_is_neither_merged_nor_skipped(policy: SlowPolicy) -> None:
    backlog = Backlog(JSON)
    backlog.add_batch(batch(*trades(1, "ES", 11)), policy)
    (tick,) = pop_messages(backlog)
    assert tick["seq"] == 11
    assert "cf" not in tick


@pytest.mark.parametrize("policy", [SlowPolicy.CONFLATE, SlowPolicy.SKIP])
def test_ticks_conflated_before_count_in_full(policy: SlowPolicy) -> None:
    backlog = Backlog(JSON)
    backlog.add_batch(batch(replace(trade("ES", seq=14), conflated=3)), policy)
    backlog.add_batch(batch(replace(trade("ES", seq=17), conflated=2)), policy)
    *notices, tick = pop_messages(backlog)
    assert tick["seq"] == 17
    if policy is SlowPolicy.CONFLATE:
        assert tick["cf"] == 6
        assert notices == []
    else:
        assert tick["cf"] == 2
        assert [(each["from"], each["to"], each["n"]) for each in notices] == [(11, 14, 4)]


@pytest.mark.parametrize("policy", [SlowPolicy.CONFLATE, SlowPolicy.SKIP])
def test_a_snapshot_is_replaced_without_being_counted(policy: SlowPolicy) -> None:
    backlog = Backlog(JSON)
    backlog.add_batch(batch(trade("ES", seq=10, snap=True)), policy)
    backlog.add_batch(batch(*trades(2, "ES", 11)), policy)
    *notices, tick = pop_messages(backlog)
    assert (tick["seq"], tick.get("cf", 0) + len(notices)) == (12, 1)
    assert [(each["from"], each["to"]) for each in notices] in ([], [(11, 11)])


def test_many_streams_are_sent_in_order_in_several_frames() -> None:
    backlog = Backlog(JSON)
    for number in range(FRAME_TICKS_MAX + 1):
        key = StreamKey("live", "trades", f"S{number}")
        backlog.add_batch(batch(*trades(1, key.symbol, 1), key=key), SlowPolicy.SKIP)
    assert len(pop_messages(backlog)) == FRAME_TICKS_MAX
    backlog.add_batch(
        batch(*trades(1, "S0", 2), key=StreamKey("live", "trades", "S0")), SlowPolicy.SKIP
    )
    assert [(tick["S"], tick["seq"]) for tick in pop_messages(backlog)] == [("S500", 1), ("S0", 2)]


def test_dropped_streams_are_forgotten_and_the_others_get_their_new_policy() -> None:
    nq = StreamKey("live", "trades", "NQ")
    backlog = Backlog(JSON)
    for key in (ES, nq):
        backlog.add_batch(batch(*trades(2, key.symbol, 1), key=key), SlowPolicy.SKIP)
    stamped = wire_format_for(Encoding.JSON, stamps=True)
    backlog.change_subscriptions(lambda key: SlowPolicy.CONFLATE if key == nq else None, stamped)
    (tick,) = pop_messages(backlog)
    assert (tick["S"], tick["seq"], tick["cf"], tick["tr"], tick["tw"]) == ("NQ", 2, 1, 7, 9)


@pytest.mark.parametrize("epochs", range(1, 15))
@pytest.mark.parametrize("ends_with_notice", [False, True])
def test_every_new_epoch_is_announced_even_after_many(epochs: int, ends_with_notice: bool) -> None:
    backlog = Backlog(JSON)
    backlog.add_batch(batch(*trades(3, "ES", 11)), SlowPolicy.CONFLATE)
    for _ in range(epochs):
        backlog.add_gap(ES, NEW_EPOCH)
        backlog.add_batch(batch(*trades(3, "ES", 1)), SlowPolicy.CONFLATE)
    if ends_with_notice:
        backlog.add_gap(ES, NEW_EPOCH)
    account = StreamAccount("trades", "ES")
    account.start_run(10)
    sent = pop_messages(backlog)
    assert len(sent) <= 8
    for message in sent:
        if message["T"] == "gap":
            list(account.add_gap(message["from"], message["to"], message["reason"]))
        else:
            list(account.add_tick(trade("ES", seq=message["seq"], conflated=message["cf"])))
    assert (account.repeated, account.missing) == (0, 0)
    assert account.restarts == min(epochs, 4) + ends_with_notice
    assert account.restarted == ends_with_notice
