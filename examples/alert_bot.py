"""A bot that prints an alert when a price has moved far in a short time.

python examples/alert_bot.py --percent 0.2 --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict, deque
from contextlib import suppress

from tickcast import Trade, connect, listen

NS_PER_SECOND = 1_000_000_000


class Watch:
    """The trades of the last seconds. It uses the times of trades, so replays work as well."""

    def __init__(self, percent: float, seconds: float) -> None:
        self._percent = percent
        self._span_ns = round(seconds * NS_PER_SECOND)
        self._recent: dict[str, deque[Trade]] = defaultdict(deque)

    def take(self, trade: Trade) -> None:
        """Add a trade. If the price has moved far enough, print an alert and start over."""
        recent = self._recent[trade.symbol]
        recent.append(trade)
        while trade.time - recent[0].time > self._span_ns:
            recent.popleft()
        moved = 100 * (trade.price / recent[0].price - 1)
        if abs(moved) >= self._percent:
            after_s = (trade.time - recent[0].time) / NS_PER_SECOND
            print(
                f"{trade.time.rfc3339()} {trade.symbol} {moved:+.2f} % in {after_s:.1f} s,"
                f" now {trade.price:g}",
                flush=True,
            )
            recent.clear()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("symbols", nargs="*", default=["*"])
    parser.add_argument("--url", default="ws://127.0.0.1:8000/stream")
    parser.add_argument("--percent", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    watch = Watch(options.percent, options.seconds)
    async with connect(options.url, encoding="msgpack") as stream:
        await stream.subscribe(trades=options.symbols)
        await listen(stream, on_trade=watch.take)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
