"""The main use: recorded trades through Redis to many clients, each of which receives all."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

import pytest

from producers.recordings.csv import CsvRecording
from tests.conftest import ES_TRADES, RunningServer
from tests.talk import Talk, talking
from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

COUNT = 2_500
BATCH = 50
RATE = 5_000


@pytest.mark.skipif(
    not ES_TRADES.exists(), reason="the recorded trades are not beside this checkout"
)
async def test_twenty_clients_each_get_exactly_the_published_trades(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    expected = list(islice(CsvRecording(ES_TRADES, "ES"), COUNT))

    async def receive(talk: Talk) -> list[dict[str, Any]]:
        await talk.ask(action="subscribe", trades=["ES"])
        ready.release()
        return await talk.ticks(COUNT, timeout_s=50)

    ready = asyncio.Semaphore(0)
    contexts = [
        talking(server.stream + query) for query in ("", "?encoding=msgpack") for _ in range(10)
    ]
    talks = [await context.__aenter__() for context in contexts]
    tasks = [asyncio.create_task(receive(talk)) for talk in talks]
    for _ in tasks:
        await ready.acquire()
    for start in range(0, COUNT, BATCH):
        await publisher.publish(expected[start : start + BATCH])
        await asyncio.sleep(BATCH / RATE)
    for ticks in await asyncio.gather(*tasks):
        assert [tick["seq"] for tick in ticks] == list(range(1, COUNT + 1))
        for tick, source in zip(ticks, expected, strict=True):
            assert isinstance(source, Trade)
            assert (tick["T"], tick["S"]) == ("t", "ES")
            assert (tick["p"], tick["s"]) == (source.price, source.size)
            assert Time.from_wire(tick["t"]) == source.time
    for context in contexts:
        await context.__aexit__(None, None, None)
