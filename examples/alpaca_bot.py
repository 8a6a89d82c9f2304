"""A bot written for Alpaca's market data, pointed at your feed. Only the address is new.

Run `tickcast serve` in one terminal, and this in another:

    tickcast replay trades.csv.gz --symbol ES --speed 100
    python examples/alpaca_bot.py ES

It buys when the short moving average crosses above the long one, and sells when it falls below it
again. This is not a good strategy, but it fits on a page.
"""

from __future__ import annotations

import argparse
from collections import deque

from alpaca.data.live import StockDataStream
from alpaca.data.models import Trade

SHORT, LONG = 20, 100


class Bot:
    """Trade one unit at a time and add up the hypothetical earnings."""

    def __init__(self) -> None:
        self._prices: deque[float] = deque(maxlen=LONG)
        self._bought_at: float | None = None
        self.earned = 0.0

    async def on_trade(self, trade: Trade) -> None:
        """Process a trade. Alpaca's library calls this for each one."""
        self._prices.append(trade.price)
        if len(self._prices) < LONG:
            return
        short = sum(list(self._prices)[-SHORT:]) / SHORT
        long = sum(self._prices) / LONG
        if self._bought_at is None and short > long:
            self._bought_at = trade.price
            print(f"{trade.timestamp:%H:%M:%S.%f} buy  {trade.price:g}", flush=True)
        elif self._bought_at is not None and short < long:
            self.earned += trade.price - self._bought_at
            self._bought_at = None
            print(
                f"{trade.timestamp:%H:%M:%S.%f} sell {trade.price:g}, earned {self.earned:+g}",
                flush=True,
            )


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("symbol", nargs="?", default="ES")
parser.add_argument("--url", default="ws://127.0.0.1:8000/stream")
options = parser.parse_args()
stream = StockDataStream("any key", "any secret", url_override=options.url)
stream.subscribe_trades(Bot().on_trade, options.symbol)
stream.run()
