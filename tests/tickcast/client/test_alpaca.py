"""An unmodified Alpaca client, connected to our server."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest

from tests.builders import T0, bar, quote, trades
from tests.conftest import RunningServer, until
from tickcast.broker.publisher import FeedPublisher

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from alpaca.data.live import StockDataStream

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("symbols", [("ES",), ("*",)])
@pytest.mark.parametrize("path", ["/stream", "/v2/live"])
async def test_it_receives_trades_quotes_and_bars(
    server: RunningServer, publisher: FeedPublisher, symbols: tuple[str, ...], path: str
) -> None:
    received: list[Any] = []

    async def handle(item: Any) -> None:
        received.append(item)

    stream = StockDataStream("key", "secret", url_override=server.ws + path)
    stream.subscribe_trades(handle, *symbols)
    stream.subscribe_quotes(handle, *symbols)
    stream.subscribe_bars(handle, *symbols)
    running = asyncio.create_task(stream._run_forever())
    # The library does not report that its subscription is confirmed: publish until a tick arrives.
    while not received:
        await publisher.publish([quote("ES")])
        await asyncio.sleep(0.05)
    await publisher.publish(trades(100, "ES"))
    await publisher.publish([bar("ES")])
    await until(lambda: len(of_kind(received, "Trade")) == 100 and of_kind(received, "Bar"))
    assert [item.price for item in of_kind(received, "Trade")] == [100 + n for n in range(100)]
    assert received[-1].symbol == "ES"
    traded, quoted, barred = (of_kind(received, kind)[0] for kind in ("Trade", "Quote", "Bar"))
    assert traded.timestamp.timestamp() == pytest.approx(T0 / 1e9)
    assert (quoted.bid_price, quoted.ask_size) == (99.5, 2)
    assert (barred.open, barred.trade_count, barred.vwap) == (1, 3, 1.5)
    running.cancel()
    await asyncio.wait([running])
    await stream.close()


def of_kind(received: list[Any], kind: str) -> list[Any]:
    return [item for item in received if type(item).__name__ == kind]
