"""Streams, epochs and repairs against a real store, with events at awkward moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from redis.asyncio import Redis

from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.history.cache import HistoryCache
from feed.ingest.upstream import Upstream
from feed.server.session import Request, Session
from feed.transport.loop_time import run_all
from tests.builders import ListSink, trades
from tests.conftest import until
from tickcast.broker import keys
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import StreamHead, new_epoch
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import BrokerUnavailable
from tickcast.wire.sequence import SequenceEvent, SequenceTracker
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Instant

FEED = "live"


def stream(symbol: str) -> StreamKey:
    return StreamKey(FEED, "trades", symbol)


class Client:
    """A session that holds streams, and the messages it has received."""

    def __init__(self, hub: Hub) -> None:
        self.sink = ListSink()
        self.outbox = Outbox(self.sink, 1 << 20, lambda: None)
        self.session = Session(
            hub, self.outbox, FEED, Encoding.JSON, extended=True, subscriptions_max=10_000
        )
        self.received: list[dict[str, Any]] = []

    def read_messages(self) -> list[dict[str, Any]]:
        self.received += self.sink.take()
        return self.received

    def seqs(self, symbol: str) -> list[int]:
        return [
            each["seq"] for each in self.read_messages() if each["T"] == "t" and each["S"] == symbol
        ]

    def restarts(self) -> list[str]:
        return [each["S"] for each in self.read_messages() if each.get("reason") == "epoch"]


class Ingest:
    """A running upstream and its hub."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.hub = Hub()
        self.upstream = Upstream(redis, self.hub, settings, self.flush)

    def flush(self) -> None:
        # Not from within `publish`: the real flusher does not do that either.
        asyncio.get_running_loop().call_soon(lambda: self.hub.flush(Instant.now()))

    async def send(self, client: Client, **action: Any) -> None:
        request = client.session.handle_message(msgspec.json.encode(action).decode(), 0.0)
        assert isinstance(request, Request)
        async with self.upstream.holding(FEED, client.session.required_streams(request)) as feed:
            run_all(client.session.complete(request, lambda: feed.epoch))

    async def client(self, *symbols: str, **options: Any) -> Client:
        client = Client(self.hub)
        await self.send(client, action="subscribe", trades=list(symbols), **options)
        return client


@asynccontextmanager
async def running(redis: Redis, settings: Settings) -> AsyncIterator[Ingest]:
    ingest = Ingest(redis, settings)
    task = asyncio.create_task(ingest.upstream.subscriber.run())
    await ingest.upstream.subscriber.wait_for_first_attempt()
    try:
        yield ingest
    finally:
        await cancel_and_wait([task])
        await ingest.upstream.stop()


async def published(publisher: FeedPublisher, symbols: Sequence[str], count: int) -> None:
    for symbol in symbols:
        await publisher.publish(trades(count, symbol))
    await publisher.flush()


async def stored(redis: Redis, symbols: Sequence[str]) -> dict[str, bytes]:
    """Return a copy of everything that the store has of some streams."""
    names = [name(stream(symbol)) for symbol in symbols for name in (keys.meta, keys.history)]
    names.append(keys.epoch(FEED))
    return {name: await redis.dump(name) for name in names}  # type: ignore[misc]


async def restore(redis: Redis, data: dict[str, bytes]) -> None:
    pipeline = redis.pipeline(transaction=True)
    for name, value in data.items():
        pipeline.restore(name, 0, value, replace=True)
    await pipeline.execute()


async def epochs_of(redis: Redis, symbols: Sequence[str]) -> set[bytes]:
    return {await redis.hget(keys.meta(stream(each)), "epoch") for each in symbols}  # type: ignore[misc]


SYMBOLS = [f"S{number}" for number in range(40)]


async def test_older_data_begins_one_epoch_even_if_a_publisher_is_faster(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    """Trackers are compared in the previous epoch, while repairs advance some of them."""
    async with running(redis, settings) as ingest:
        client = await ingest.client(*SYMBOLS)
        await published(publisher, SYMBOLS, 3)
        older = await stored(redis, SYMBOLS)
        await published(publisher, SYMBOLS, 3)
        await until(lambda: all(client.seqs(each) == [1, 2, 3, 4, 5, 6] for each in SYMBOLS))
        heads = ingest.upstream.store.heads
        queried: list[int] = []

        async def heads_and_a_publish(streams: Sequence[StreamKey]) -> list[StreamHead]:
            found = await heads(streams)
            if streams and not queried:
                queried.append(len(streams))
                # The publisher learns that numbers are lost, and begins an epoch.
                await published(publisher, SYMBOLS[:10], 1)
                await until(lambda: len(client.restarts()) >= 10)
            return found

        ingest.upstream.store.heads = heads_and_a_publish  # type: ignore[method-assign]
        await restore(redis, older)
        await redis.client_kill_filter(_type="pubsub")
        await until(lambda: len(client.restarts()) >= len(SYMBOLS))
        await published(publisher, SYMBOLS, 1)
        await until(lambda: all(client.seqs(each)[6:] for each in SYMBOLS))
        assert queried == [len(SYMBOLS)]
        assert sorted(client.restarts()) == sorted(SYMBOLS)
        assert len(await epochs_of(redis, SYMBOLS)) == 1
        assert client.seqs("S0") == [1, 2, 3, 4, 5, 6, 1, 2]


async def test_older_data_of_an_older_epoch_is_noticed(redis: Redis, settings: Settings) -> None:
    """A publisher that has just started knows only that epoch, and its ticks would be ignored."""
    async with running(redis, settings) as ingest:
        client = await ingest.client("A", "B")
        async with FeedPublisher(redis, FEED, settings) as first:
            await published(first, ["A", "B"], 3)
            older = await stored(redis, ["A", "B"])
            await first.begin_epoch()
            await published(first, ["A", "B"], 2)
        await until(lambda: client.seqs("B") == [1, 2, 3, 1, 2])
        await restore(redis, older)
        await redis.client_kill_filter(_type="pubsub")
        await until(lambda: len(client.restarts()) == 4)
        async with FeedPublisher(redis, FEED, settings) as second:
            await published(second, ["A", "B"], 1)
        await until(lambda: client.seqs("A") == client.seqs("B") == [1, 2, 3, 1, 2, 1])


async def test_an_epoch_that_begins_while_the_store_is_queried_stays(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    async with running(redis, settings) as ingest:
        client = await ingest.client("A")
        await published(publisher, ["A"], 1)
        await until(lambda: client.seqs("A") == [1])
        store = ingest.upstream.store
        read_epoch = store.epoch
        later: list[str] = []

        async def epoch(feed: str, keep: bool = False) -> str:
            answer = await read_epoch(feed, keep)
            if not later:
                later.append(await store.begin_epoch(feed, answer))
                async with FeedPublisher(redis, FEED, settings) as other:
                    await published(other, ["A"], 1)
                await until(lambda: client.seqs("A") == [1, 1])
            return answer

        compared = asyncio.Event()
        compare_all = ingest.upstream._trackers.compare_all

        async def compare_and_report() -> None:
            await compare_all()
            compared.set()

        store.epoch = epoch  # type: ignore[method-assign]
        ingest.upstream._trackers.compare_all = compare_and_report  # type: ignore[method-assign]
        await redis.client_kill_filter(_type="pubsub")
        await until(compared.is_set)
        other = await ingest.client("B")
        assert [
            each["epoch"] for each in other.read_messages() if each["T"] == "subscription"
        ] == later


async def test_an_old_repair_does_not_affect_a_reopened_stream(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    """The repair waits for the store while its stream is closed and opened again."""
    no_linger = msgspec.structs.replace(settings, linger_s=0.0)
    async with running(redis, no_linger) as ingest:
        store, gate = ingest.upstream.store, asyncio.Event()
        read_after = store.read_after
        queried: list[SequenceTracker] = []

        async def read_slowly(stream: StreamKey, tracker: SequenceTracker) -> list[SequenceEvent]:
            events = await read_after(stream, tracker)
            queried.append(tracker)
            if len(queried) == 1:
                await gate.wait()
            return events

        store.read_after = read_slowly  # type: ignore[method-assign]
        first = await ingest.client("A")
        await published(publisher, ["A"], 2)
        await until(lambda: first.seqs("A") == [1, 2])
        # Two ticks are missed, so the third reveals a hole, which is repaired.
        await redis.client_kill_filter(_type="pubsub")
        await published(publisher, ["A"], 2)
        await until(lambda: len(queried) == 1)
        first.session.release()
        sweeping = asyncio.create_task(ingest.upstream.sweep_forever(0.01))
        await until(lambda: not ingest.hub.is_open(stream("A")))
        await cancel_and_wait([sweeping])
        second = await ingest.client("A")
        assert second.seqs("A") == []
        # The new tracker also misses some, and is repaired although the old repair still waits.
        await redis.client_kill_filter(_type="pubsub")
        await published(publisher, ["A"], 3)
        await until(lambda: second.seqs("A") == [5, 6, 7])
        gate.set()
        await published(publisher, ["A"], 1)
        await until(lambda: len(second.seqs("A")) >= 4)
        assert second.seqs("A") == [5, 6, 7, 8]


async def test_quiet_streams_enter_an_epoch_although_the_store_fails_once(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    async with running(redis, settings) as ingest:
        client = await ingest.client("QUIET", "BUSY")
        await published(publisher, ["QUIET", "BUSY"], 2)
        await until(lambda: client.seqs("BUSY") == [1, 2] == client.seqs("QUIET"))
        store = ingest.upstream.store
        restart = store.restart
        calls: list[str] = []

        async def fails_at_first(streams: Sequence[StreamKey], epoch: str) -> None:
            calls.append(epoch)
            if len(calls) == 1:
                raise BrokerUnavailable("no connection was free")
            await restart(streams, epoch)

        store.restart = fails_at_first  # type: ignore[method-assign]
        await redis.set(keys.epoch(FEED), new_epoch())
        async with FeedPublisher(redis, FEED, settings) as other:
            await published(other, ["BUSY"], 1)
        await until(lambda: sorted(client.restarts()) == ["BUSY", "QUIET"])
        assert len(calls) == 2


async def test_a_stream_that_a_client_catches_up_with_is_not_closed(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    """No other client holds it, it was never published, and reading its history takes a while."""
    no_linger = msgspec.structs.replace(settings, linger_s=0.0)
    async with running(redis, no_linger) as ingest:
        client = await ingest.client("A", start=1)
        assert client.session.backfill is not None
        assert client.session.backfill.behind
        sweeping = asyncio.create_task(ingest.upstream.sweep_forever(0.01))
        await asyncio.sleep(0.1)
        assert ingest.hub.is_open(stream("A"))
        await cancel_and_wait([sweeping])


async def test_a_client_waits_for_a_stream_that_is_not_carried(
    redis: Redis, settings: Settings
) -> None:
    async with running(redis, settings) as ingest:
        client = await ingest.client("A", start=1)
        backfill = client.session.backfill
        assert backfill is not None
        ingest.hub.close_stream(stream("A"))
        assert backfill.advance(HistoryCache(), Instant.now()) == []
        assert backfill.is_waiting
        ingest.hub.open_stream(stream("A"), epoch="e")
        assert [each.key for each in backfill.advance(HistoryCache(), Instant.now())] == [
            stream("A")
        ]


async def test_the_epoch_and_the_directory_are_queried_once_for_many_clients(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    await published(publisher, SYMBOLS, 1)
    async with running(redis, settings) as ingest:
        before = await calls_of(redis, "set", "sscan", "smembers")
        clients = await asyncio.gather(*(ingest.client("*") for _ in range(200)))
        assert await calls_of(redis, "set", "sscan", "smembers") - before <= 4
        await published(publisher, SYMBOLS, 1)
        await until(lambda: all(each.seqs("S0") == [2] for each in clients))


async def calls_of(redis: Redis, *commands: str) -> int:
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in commands)
