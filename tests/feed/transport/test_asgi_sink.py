"""The application on another server: uvicorn's own WebSocket class."""

from __future__ import annotations

import asyncio
import contextlib

import uvicorn
from websockets.exceptions import ConnectionClosed

from feed.server.app import create_app
from feed.server.sockets import bind
from tests.builders import trades
from tests.conftest import QuietServer, until
from tests.talk import talking
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings


async def test_frames_travel_through_send(
    settings: Settings, redis_url: str, publisher: FeedPublisher
) -> None:
    small = Settings(runtime_dir=settings.runtime_dir, outbox_max_bytes=64 * 1024)
    app = create_app(small, redis_url)
    with bind("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, ws="websockets-sansio", log_config=None, lifespan="on")
        started = asyncio.Event()
        server = QuietServer(config, started.set)
        serving = asyncio.create_task(server.serve([listener]))
        await started.wait()
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/stream"
        async with talking(url) as json_client, talking(url + "?encoding=msgpack") as packed:
            for client in (json_client, packed):
                assert (await client.ask(action="subscribe", trades=["ES"]))["trades"] == ["ES"]
            for _ in range(4):
                await publisher.publish(trades(50))
            for client in (json_client, packed):
                ticks = await client.ticks(200)
                assert [tick["seq"] for tick in ticks] == list(range(1, 201))
        async with talking(url) as slow:
            await slow.ask(action="subscribe", trades=["ES"])
            (protocol,) = server.server_state.connections
            protocol.pause_writing()  # Pretend that its socket is full.
            await publisher.publish(trades(3000))
            with contextlib.suppress(ConnectionClosed):
                async with asyncio.timeout(10):
                    while True:
                        await slow.hear()
            await until(lambda: not server.server_state.connections)
        server.should_exit = True
        await serving
