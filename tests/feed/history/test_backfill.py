"""History, served by a real server from a real store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.history.backfill import Backfill
from feed.history.client_backfill import ClientBackfill
from feed.history.cursor import HistoryRead, StreamCursor
from tests.builders import T0, ListSink, quote, trade, trades
from tests.conftest import RunningServer, running_server, until
from tests.talk import Talk, talking
from tickcast.broker import keys
from tickcast.broker.client import make_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.sequence import TimeLocation
from tickcast.wire.ticks import StreamKey, Trade
from tickcast.wire.times import Time

ES = StreamKey("live", "trades", "ES")


async def publish(publisher: FeedPublisher, *ticks: Trade) -> None:
    await publisher.publish(ticks)
    await publisher.flush()


async def seqs(talk: Talk, count: int) -> list[int]:
    return [tick["seq"] for tick in await talk.ticks(count)]


@pytest.mark.parametrize("batch", [1, 7, 300])
async def test_a_time_is_found_whatever_the_order_of_times(
    publisher: FeedPublisher, redis: Redis, batch: int
) -> None:
    dice = random.Random(batch)
    times = [T0 + dice.randrange(10_000) for _ in range(600)]
    for start in range(0, len(times), batch):
        await publish(publisher, *(trade(time=Time(t)) for t in times[start : start + batch]))
    wanted = [dice.randrange(T0 - 10, T0 + 10_010) for _ in range(300)]
    locations = await Store(redis).locate([(ES, Time(time)) for time in wanted])
    for time, location in zip(wanted, locations, strict=True):
        first = next((seq for seq, t in enumerate(times, 1) if t >= time), 601)
        assert (location.before, location.trimmed) == (first - 1, False), time


async def test_times_that_are_no_longer_retained(redis: Redis, settings: Settings) -> None:
    bounded = Settings(runtime_dir=settings.runtime_dir, history_ticks=10)
    async with FeedPublisher(redis, "live", bounded) as publisher:
        for tick in trades(40):
            await publish(publisher, tick)
    locations = await Store(redis).locate([(ES, Time(T0 + n)) for n in (0, 29, 30, 31, 39, 40)])
    assert [(location.before, location.trimmed) for location in locations] == [
        (30, True), (30, True), (30, False), (31, False), (39, False), (40, False),
    ]  # fmt: skip


async def test_many_clients_request_history_while_more_is_published(
    server: RunningServer, publisher: FeedPublisher, redis: Redis
) -> None:
    await publish(publisher, *trades(3000))
    epoch = (await Store(redis).heads([ES]))[0].epoch
    total = 4500

    async def receive(first: int, field: str) -> None:
        past: dict[str, Any] = (
            {"start": T0 + first - 1}
            if field == "start"
            else {"resume": {"epoch": epoch, "trades": {"ES": first - 1}}}
        )
        encoding = random.choice(["json", "msgpack"])
        async with talking(f"{server.stream}?encoding={encoding}") as talk:
            assert (await talk.ask(action="subscribe", trades=["ES"], **past))[
                "T"
            ] == "subscription"
            assert await seqs(talk, total + 1 - first) == list(range(first, total + 1))

    async def publish_more() -> None:
        for n in range(3000, total, 10):
            await publisher.publish([trade(price=n + i, time=Time(T0 + n + i)) for i in range(10)])
            await asyncio.sleep(0.002)

    requests = [(random.randint(1, 3000), random.choice(["start", "resume"])) for _ in range(15)]
    await asyncio.gather(publish_more(), *(receive(*each) for each in requests))
    backfill = server.app_state["engine"].backfill
    await until(lambda: len(backfill) == 0)
    assert backfill._cache.size_bytes == 0


async def test_the_history_of_all_streams(server: RunningServer, publisher: FeedPublisher) -> None:
    symbols = [f"S{number}" for number in range(100)]
    for _ in range(3):
        await publisher.publish([trade(symbol) for symbol in symbols])
        await publisher.publish([quote(symbol) for symbol in symbols])
        await publisher.flush()
    async with talking(server.stream) as talk:
        epoch = (await talk.ask(action="list", id=1))["epoch"]
        resume = {"epoch": epoch, "quotes": {"*": 0, "S7": 2}}
        await talk.ask(action="subscribe", trades=["*"], quotes=["*"], start=int(T0), resume=resume)
        found: dict[tuple[str, str], list[int]] = {}
        for tick in await talk.ticks(598):
            found.setdefault((tick["T"], tick["S"]), []).append(tick["seq"])
        assert found.pop(("q", "S7")) == [3]
        assert set(map(tuple, found.values())) == {(1, 2, 3)}
        await publish(publisher, trade("S1"), trade("NEW"))
        assert {(t["S"], t["seq"]) for t in await talk.ticks(2)} == {("S1", 4), ("NEW", 1)}


async def test_a_client_that_does_not_read_its_history_costs_nothing(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    await publish(publisher, *trades(9000))
    sessions = server.app_state["engine"].sessions
    async with talking(server.stream) as slow, talking(server.stream) as other:
        slow.socket.transport.pause_reading()
        await slow.say(action="subscribe", trades=["ES"], start=int(T0))
        await until(lambda: any(each.backfill is not None for each in sessions))
        await other.ask(action="subscribe", trades=["ES"])
        for count in range(1, 21):
            await publish(publisher, trade(time=Time(T0 + 9000 + count)))
            assert await seqs(other, 1) == [9000 + count]
            assert all(each.outbox.waiting_bytes < 400_000 for each in sessions)
        slow.socket.transport.resume_reading()
        assert (await slow.hear())["T"] == "subscription"
        assert await seqs(slow, 9020) == list(range(1, 9021))


async def test_a_lost_numbering_is_announced_to_live_and_returning_clients(
    server: RunningServer, publisher: FeedPublisher, redis: Redis
) -> None:
    await publish(publisher, *trades(3))
    async with talking(server.stream, subprotocols=["tickcast.v1.json"]) as talk:
        old = (await talk.ask(action="subscribe", trades=["ES"], id=1))["epoch"]
        await redis.flushall()
        await publish(publisher, *trades(2))
        gap = {"T": "gap", "ch": "trades", "S": "ES", "from": None, "to": None, "reason": "epoch"}
        assert await talk.hear() == gap
        assert await seqs(talk, 2) == [1, 2]
        assert (await talk.ask(action="list", id=1))["epoch"] > old
        async with talking(server.stream) as other:
            resume = {"epoch": old, "trades": {"ES": 3}}
            await other.ask(action="subscribe", trades=["ES"], resume=resume)
            assert await other.hear() == gap
            (tick,) = await other.ticks(1)
            assert (tick["seq"], tick["snap"]) == (2, True)


async def test_a_lost_stream_is_announced_to_a_client_that_resumes_it_by_wildcard(
    server: RunningServer, publisher: FeedPublisher, redis: Redis
) -> None:
    await publish(publisher, *trades(3))
    async with talking(server.stream) as talk:
        old = (await talk.ask(action="list", id=1))["epoch"]
    await redis.flushall()
    async with talking(server.stream) as talk:
        resume = {"epoch": old, "trades": {"*": 0, "ES": 3}}
        await talk.ask(action="subscribe", trades=["*"], resume=resume)
        message = await talk.hear()
        assert (message["T"], message["reason"]) == ("gap", "epoch")
        await publish(publisher, *trades(2))
        assert await seqs(talk, 2) == [1, 2]


async def test_a_quiet_stream_enters_the_new_epoch_with_its_feed(
    server: RunningServer, publisher: FeedPublisher, redis: Redis
) -> None:
    await publish(publisher, *trades(3), *trades(3, "QUIET"))
    async with talking(server.stream, subprotocols=["tickcast.v1.json"]) as talk:
        await talk.ask(action="subscribe", trades=["QUIET"], id=1)
        await redis.delete("tickcast:{live/trades/ES}:meta")
        await publish(publisher, *trades(1))
        async with talking(server.stream) as other:
            await other.say(action="subscribe", trades=["ES", "LATE"], id=1)
            await other.hear()
        message = await talk.hear()
        assert (message["T"], message["S"], message["reason"]) == ("gap", "QUIET", "epoch")
        epoch = (await talk.ask(action="list", id=1))["epoch"]
        await publish(publisher, *trades(5, "QUIET"))
        assert await seqs(talk, 5) == [1, 2, 3, 4, 5]
        assert {head.epoch for head in await Store(redis).heads([ES])} == {epoch}


async def test_a_plain_client_receives_no_gap_notices(
    server: RunningServer, publisher: FeedPublisher, redis: Redis
) -> None:
    await publish(publisher, *trades(3))
    async with talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["ES"])
        await redis.flushall()
        await publish(publisher, *trades(2))
        assert await seqs(talk, 2) == [1, 2]


async def test_numbers_that_the_store_has_lost_are_not_assigned_twice(
    server: RunningServer, publisher: FeedPublisher, redis: Redis, settings: Settings
) -> None:
    """This happens when a replica that lacked the last ticks has become the primary."""
    await publish(publisher, *trades(5))
    copy: Any = await redis.dump("tickcast:{live/trades/ES}:meta")
    async with talking(server.stream, subprotocols=["tickcast.v1.json"]) as talk:
        await talk.ask(action="subscribe", trades=["ES"], id=1)
        await publish(publisher, *trades(5))
        assert await seqs(talk, 5) == [6, 7, 8, 9, 10]
        await redis.restore("tickcast:{live/trades/ES}:meta", 0, copy, replace=True)
        await redis.client_kill_filter(_type="pubsub")
        assert (await talk.hear())["reason"] == "epoch"
        async with FeedPublisher(redis, "live", settings) as other:
            await publish(other, *trades(2))
        assert await seqs(talk, 2) == [1, 2]
        await publish(publisher, *trades(2))
        assert await seqs(talk, 2) == [3, 4]


async def test_ticks_that_cannot_be_repaired_are_a_gap(settings: Settings, redis_url: str) -> None:
    bounded = Settings(runtime_dir=settings.runtime_dir, history_ticks=10)
    async with (
        running_server(bounded, redis_url) as server,
        Redis(unix_socket_path=redis_url.removeprefix("unix://")) as redis,
        FeedPublisher(redis, "live", bounded) as publisher,
        talking(server.stream, subprotocols=["tickcast.v1.msgpack"]) as talk,
    ):
        await talk.ask(action="subscribe", trades=["ES"], id=1)
        await publish(publisher, *trades(5))
        assert await seqs(talk, 5) == [1, 2, 3, 4, 5]
        async with redis.pipeline(transaction=True) as pipeline:
            pipeline.client_pause(300, all=False)
            pipeline.client_kill_filter(_type="pubsub")
            await pipeline.execute()
        for _ in range(50):
            await publish(publisher, trade())
        message = await talk.hear()
        if message["T"] == "gap":
            assert (message["from"], message["reason"]) == (6, "broker")
            following = message["to"] + 1
        else:
            following = message["seq"] + 1
        while following <= 55:
            (tick,) = await talk.ticks(1)
            assert tick["seq"] == following
            following += 1


# -- failures for one client


@pytest.mark.parametrize("seq", [2**53, 2**63 - 512, 2**63 - 1, 2**64])
async def test_a_position_that_no_stream_reaches_is_refused(
    server: RunningServer, publisher: FeedPublisher, seq: int
) -> None:
    await publish(publisher, *trades(70))
    async with talking(server.stream) as hostile, talking(server.stream) as other:
        resume = {"epoch": "x", "trades": {"ES": seq}}
        error = await hostile.ask(action="subscribe", trades=["ES"], resume=resume, id=1)
        assert (error["code"], error["id"]) == (400, 1)
        await other.ask(action="subscribe", trades=["ES"], start=int(T0))
        assert await seqs(other, 70) == list(range(1, 71))


async def test_history_is_read_exactly_up_to_the_greatest_position(
    server: RunningServer, publisher: FeedPublisher, redis: Redis
) -> None:
    await publish(publisher, *trades(3))
    greatest = 2**53 - 1
    key = keys.meta(ES)
    await redis.hset(key, "seq", str(greatest - 3))
    await publish(publisher, *trades(3))
    store = Store(redis)
    for after in range(greatest - 4, greatest + 1):
        history = await store.history(ES, after)
        found = [tick.seq for batch in history.batches for tick in batch.ticks]
        assert found == ([] if after == greatest else list(range(greatest - 2, greatest + 1)))
        assert history.complete
    epoch = (await store.heads([ES]))[0].epoch
    async with talking(server.stream) as talk:
        resume = {"epoch": epoch, "trades": {"ES": greatest - 2}}
        await talk.ask(action="subscribe", trades=["ES"], resume=resume)
        assert await seqs(talk, 2) == [greatest - 1, greatest]


@pytest.mark.parametrize("field", ["start", "resume"])
async def test_an_unreadable_history_affects_only_the_clients_that_request_it(
    server: RunningServer,
    publisher: FeedPublisher,
    redis: Redis,
    field: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    symbols = [f"S{number}" for number in range(40)]
    for _ in range(3):
        await publish(publisher, *(trade(symbol) for symbol in symbols))
    # A publisher never leaves such a key: a history that is not of the type stream.
    bad = keys.history(StreamKey("live", "trades", "S7"))
    await redis.delete(bad)
    await redis.set(bad, "x")
    epoch = (await Store(redis).heads([StreamKey("live", "trades", "S7")]))[0].epoch
    past: dict[str, Any] = (
        {"start": int(T0) - 1}
        if field == "start"
        else {"resume": {"epoch": epoch, "trades": dict.fromkeys(symbols, 1)}}
    )
    async with talking(server.stream) as talk, talking(server.stream) as other:
        await talk.ask(action="subscribe", trades=symbols, id="all", **past)
        await other.ask(action="subscribe", trades=["S1"], start=int(T0) - 1)
        found: dict[str, list[int]] = {}
        notices: list[dict[str, Any]] = []
        while (
            sum(map(len, found.values())) < 39 * (3 if field == "start" else 2) or len(notices) < 2
        ):
            message = await talk.hear()
            if message["T"] == "t":
                found.setdefault(message["S"], []).append(message["seq"])
            else:
                notices.append(message)
        assert notices == [
            {
                "T": "error", "code": 503, "id": "all",
                "msg": "broker unavailable: the history of trades S7 can't be read",
            },
            {
                "T": "gap", "ch": "trades", "S": "S7", "reason": "broker",
                "from": None if field == "start" else 2, "to": 3,
            },
        ]  # fmt: skip
        assert "S7" not in found
        assert await seqs(other, 3) == [1, 2, 3]
        backfill = server.app_state["engine"].backfill
        await until(lambda: len(backfill) == 0)
        assert not backfill._wanted
        assert not backfill._unread
        assert backfill.failed == 1
        assert "could not read the history of" in caplog.text
        # Both clients continue live, on the stream of the bad history too.
        await redis.delete(bad)
        await publish(publisher, trade("S7"), trade("S1"))
        assert {(tick["S"], tick["seq"]) for tick in await talk.ticks(2)} == {("S7", 4), ("S1", 4)}


async def test_an_invalid_history_is_an_internal_error(
    server: RunningServer, publisher: FeedPublisher, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(publisher, *trades(3))
    async with talking(server.stream) as talk, talking(server.stream) as other:
        await other.ask(action="subscribe", trades=["ES"])
        await redis.xadd(keys.history(ES), {"b": b"x"}, id="99-1")
        await redis.hset(keys.meta(ES), "seq", "three")
        resume = {"epoch": "", "trades": {"ES": 0}}
        await talk.ask(action="subscribe", trades=["ES"], resume=resume, id=5)
        error = await talk.hear()
        assert (error["code"], error["id"]) == (500, 5)
        assert (await talk.hear())["reason"] == "broker"
        assert "Traceback" in caplog.text
        # Other clients' history is served by the same tasks.
        await publish(publisher, trade("NQ"))
        await other.ask(action="subscribe", trades=["NQ"], start=int(T0) - 1)
        assert await seqs(other, 1) == [1]


async def test_reads_for_a_client_that_has_left_are_cancelled(
    settings: Settings, redis_url: str, publisher: FeedPublisher, redis: Redis
) -> None:
    await publish(publisher, *trades(3))
    backfill = Backfill(Store(redis))
    hub = Hub()
    hub.open_stream(ES, epoch="e", seq=3)
    client = ClientBackfill(hub, Outbox(ListSink(), 1 << 20, lambda: None))
    client.add_streams({ES: StreamCursor()})
    request = HistoryRead(ES, 0)
    client.reading[ES] = request
    backfill._wanted[request] = [client]
    backfill._unread.append(request)
    backfill.remove(client)
    assert not backfill._wanted
    assert backfill._next_reads() == []


@pytest.mark.parametrize(("seq", "together"), [(1, 32), (300, 13), (9000, 2), (None, 2)])
def test_short_pages_are_read_together(seq: int | None, together: int) -> None:
    """A read returns few ticks, so it covers as many streams as possible: each is a round trip."""
    backfill = Backfill(Store(make_client("redis://127.0.0.1:1")))
    hub = Hub()
    client = ClientBackfill(hub, Outbox(ListSink(), 1 << 20, lambda: None))
    for number in range(100):
        key = ES._replace(symbol=f"S{number}")
        if seq is not None:
            hub.open_stream(key, epoch="e", seq=seq)
        request = HistoryRead(key, 0)
        backfill._wanted[request] = [client]
        backfill._unread.append(request)
    assert len(backfill._next_reads()) == together
    assert len(backfill._next_reads()) == together
    assert len(backfill._unread) == 100 - 2 * together


async def test_a_failed_backfill_is_restarted_and_counted(
    server: RunningServer,
    publisher: FeedPublisher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await publish(publisher, *trades(3))
    engine = server.app_state["engine"]

    def fail(backfill: Backfill) -> None:
        monkeypatch.undo()
        raise ValueError("a bug")

    monkeypatch.setattr(Backfill, "_serve_next", fail)
    async with talking(server.stream) as talk, httpx.AsyncClient(base_url=server.http) as http:
        await talk.ask(action="subscribe", trades=["ES"], start=int(T0))
        await until(lambda: engine.tasks.down == ["backfill"])
        answer = await http.get("/ready")
        if answer.status_code == 503:  # It soon reconnects.
            assert answer.json()["reason"] == "failed, about to restart: backfill"
        assert await seqs(talk, 3) == [1, 2, 3]
        answer = await http.get("/ready")
        assert answer.json() == {"status": "ready", "restarts": {"backfill": 1}}
        metrics = (await http.get("/metrics")).text
        assert 'tickcast_task_restarts_total{task="backfill"} 1.0' in metrics
    assert "ValueError: a bug" in caplog.text


class GatedStore(Store):
    """A store that answers once its gate opens."""

    def __init__(self) -> None:
        self.gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.located = 0

    async def locate(self, wanted: Sequence[tuple[StreamKey, Time]]) -> list[TimeLocation]:
        await self.gate
        self.located += len(wanted)
        return [TimeLocation("e", 0, 0, trimmed=False) for _ in wanted]


async def test_a_read_requested_while_all_readers_end_is_made() -> None:
    store = GatedStore()
    backfill = Backfill(store)
    client = ClientBackfill(Hub(), Outbox(ListSink(), 1 << 20, lambda: None))
    for number in range(4):
        # One at a time, so that each gets its own reader.
        backfill._request_read(HistoryRead(ES, time=Time(number)), client)
        await asyncio.sleep(0)
    assert len(backfill._readers) == 4
    store.gate.set_result(None)
    # After the last steps of the readers, in the same turn of the loop.
    asyncio.get_running_loop().call_soon(
        backfill._request_read, HistoryRead(ES, time=Time(4)), client
    )
    await until(lambda: store.located == 5)
    await until(lambda: not backfill._readers)
