"""Helpers that make ticks and read frames in tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tickcast.wire.encoding import TEXT, split_frames
from tickcast.wire.ticks import Bar, Quote, Trade
from tickcast.wire.times import Instant, Time

T0 = Time(1_378_054_800_083_000_000)
NOW = Instant(100.0, T0)


def trade(symbol: str = "ES", price: float = 1640.25, size: float = 1, **more: Any) -> Trade:
    return Trade(symbol=symbol, price=price, size=size, time=more.pop("time", T0), **more)


def trades(count: int, symbol: str = "ES", first_seq: int | None = None) -> list[Trade]:
    return [
        trade(
            symbol,
            price=100 + n,
            time=Time(T0 + n),
            seq=None if first_seq is None else first_seq + n,
        )
        for n in range(count)
    ]


def quote(symbol: str = "ES", **more: Any) -> Quote:
    return Quote(
        symbol=symbol, bid_price=99.5, bid_size=3, ask_price=100.5, ask_size=2,
        time=more.pop("time", T0), **more,
    )  # fmt: skip


def bar(symbol: str = "ES", **more: Any) -> Bar:
    return Bar(
        symbol=symbol, open=1, high=4, low=0.5, close=2, volume=10, trade_count=3, vwap=1.5,
        time=T0, **more,
    )  # fmt: skip


def messages(data: bytes) -> list[dict[str, Any]]:
    """Decode all messages in some server frames, with times of MessagePack as datetimes."""
    found: list[dict[str, Any]] = []
    for opcode, payload in split_frames(data):
        decode = msgspec.json.decode if opcode == TEXT else msgspec.msgpack.decode
        found += decode(payload)
    return found


class ListSink:
    """A sink that records what it receives, and pauses on command."""

    def __init__(self) -> None:
        self._paused = False
        self.on_pause: Callable[[], None] = lambda: None
        self.written: list[bytes] = []
        self.unsent = 0
        self.write = self.written.append

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        if paused:
            self.on_pause()

    def buffered(self) -> int:
        return self.unsent

    def take(self) -> list[dict[str, Any]]:
        """Return the messages written since the last call."""
        data = b"".join(self.written)
        self.written.clear()
        return messages(data)
