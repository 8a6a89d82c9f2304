"""Tickcast itself: `tickcast serve` with its embedded store."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import Feed, frame, handshake
from tickcast.broker.client import make_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

STORE = "store"


class Peer:
    """The server as users start it."""

    name = "tickcast"
    about = "tickcast serve, embedded store"

    def __init__(self) -> None:
        self.port = 0
        # The clients don't answer pings. The peers don't send any, either.
        self.environment = {"TICKCAST_LOG_LEVEL": "error", "TICKCAST_PING_INTERVAL_S": "3600"}

    def install(self) -> None:
        pass

    def command(self, directory: Path) -> list[str]:
        self.environment["TICKCAST_RUNTIME_DIR"] = str(directory / STORE)
        return [sys.executable, "-m", "tickcast", "serve", "--port", "0"]

    def hello(self) -> bytes:
        return handshake("/stream")

    def steps(self, symbols: Sequence[str]) -> list[tuple[bytes, bytes]]:
        action = json.dumps({"action": "subscribe", "trades": list(symbols)})
        return [(b"connected", frame(action.encode())), (b"subscription", b"")]

    def feed(self, directory: Path) -> Feed:
        return StoreFeed(directory)


class StoreFeed:
    """Publishes through `FeedPublisher` into the store, like every producer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / STORE

    async def open(self) -> None:
        settings = Settings(runtime_dir=str(self._directory))
        self._client = make_client(f"unix://{self._directory}/store.sock")
        self._publisher = FeedPublisher(self._client, "live", settings)
        await self._publisher.__aenter__()

    def prepare(self, symbol: str, text: bytes, time_ns: int) -> Trade:
        tick = json.loads(text)[0]
        return Trade(
            symbol=symbol, price=tick["p"], size=tick["s"], venue=tick["x"], time=Time(time_ns)
        )

    async def send(self, prepared: Sequence[Any]) -> None:
        await self._publisher.publish(prepared)

    async def close(self) -> None:
        await self._publisher.__aexit__(None, None, None)
        await self._client.aclose()
