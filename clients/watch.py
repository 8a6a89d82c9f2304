"""What `tickcast watch` shows: a board of symbols, kept from ticks and drawn as a table."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clients.columns import column_ends, count_fitting
from feed.ticks import Quote, Tick, Trade

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH: Final = 24
_RATE_WINDOW_S: Final = 5.0
_FLASH_S: Final = 0.6
_LINES_AROUND: Final = 3
_COLUMNS: Final = ("symbol", "last", "change", "bid", "ask", "volume", "ticks/s", "age")


class Row:
    """What is known of one symbol."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.first = self.last = 0.0
        self.moved = 0
        self.moved_at = 0.0
        self.quote: Quote | None = None
        self.volume = 0.0
        self.prices: deque[float] = deque(maxlen=_SPARK_WIDTH)
        self.arrivals: deque[tuple[float, int]] = deque()
        self.updated_at = 0.0

    def take(self, tick: Tick, now: float) -> None:
        """Update from a tick that arrived at `now`."""
        self.updated_at = now
        if self.arrivals and now - self.arrivals[-1][0] < 0.25:
            then, count = self.arrivals.pop()
            self.arrivals.append((then, count + 1))
        else:
            self.arrivals.append((now, 1))
        if isinstance(tick, Trade):
            self.volume += tick.size
            self._move(tick.price, now)
        elif isinstance(tick, Quote):
            self.quote = tick
        else:
            self.volume += tick.volume
            self._move(tick.close, now)

    def _move(self, price: float, now: float) -> None:
        if not self.prices:
            self.first = price
        elif price != self.last:
            self.moved = 1 if price > self.last else -1
            self.moved_at = now
        self.last = price
        self.prices.append(price)

    def rate(self, now: float) -> float:
        """Ticks per second, lately."""
        while self.arrivals and now - self.arrivals[0][0] > _RATE_WINDOW_S:
            self.arrivals.popleft()
        return sum(count for _, count in self.arrivals) / _RATE_WINDOW_S


class Board:
    """All symbols seen, and the table of them."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self.ticks = 0

    def take(self, tick: Tick) -> None:
        """Update from a tick."""
        self.ticks += 1
        row = self._rows.get(tick.symbol)
        if row is None:
            row = self._rows[tick.symbol] = Row(tick.symbol)
        row.take(tick, self._clock())

    def render(self, width: int, height: int, connected: bool = True) -> RenderableType:
        """The table for a terminal of this size.

        Numbers stay whole: the sparkline takes what they leave, and columns that do not fit are
        left out from the right.
        """
        now = self._clock()
        rows = sorted(self._rows.values(), key=lambda row: row.symbol)
        room = max(1, height - _LINES_AROUND)
        total = sum(row.rate(now) for row in rows)
        more = f", {len(rows) - room} more below" if len(rows) > room else ""
        summary = f"{self._title}  {len(rows)} symbols{more}, {self.ticks:,} ticks, {total:,.0f}/s"
        if not connected:
            summary = f"DISCONNECTED, coming back …  {summary}"
        style = "dim" if connected else "bold red"
        return Group(
            Text(summary, style=style, no_wrap=True, overflow="ellipsis"),
            _table(rows[:room], now, width),
        )


def _table(rows: list[Row], now: float, width: int) -> Table:
    cells = [_cells(row, now) for row in rows]
    ends = column_ends(_COLUMNS, cells)
    shown = count_fitting(ends, width)
    spark_width = min(_SPARK_WIDTH, width - ends[-1])
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in _COLUMNS[:shown]:
        table.add_column(name, justify="left" if name == "symbol" else "right", no_wrap=True)
    if spark_width > 0:
        table.add_column("", no_wrap=True, min_width=spark_width)
    for row, line in zip(rows, cells, strict=True):
        if spark_width > 0:
            line.append(Text(sparkline(list(row.prices)[-spark_width:]), style=line[2].style))
        table.add_row(*line[: shown + 1] if spark_width > 0 else line[:shown])
    return table


def _cells(row: Row, now: float) -> list[Text]:
    change = (row.last / row.first - 1) * 100 if row.first else 0.0
    colour = "green" if change > 0 else "red" if change < 0 else "default"
    flash = ""
    if now - row.moved_at < _FLASH_S:
        flash = "bold green" if row.moved > 0 else "bold red"
    quote = row.quote
    return [
        Text(row.symbol, style="bold"),
        Text(format_price(row.last) if row.prices else "–", style=flash),
        Text(f"{change:+.2f}%" if row.prices else "–", style=colour),
        Text(format_price(quote.bid_price) if quote else "–"),
        Text(format_price(quote.ask_price) if quote else "–"),
        Text(format_amount(row.volume)),
        Text(f"{row.rate(now):.1f}"),
        Text(format_age(now - row.updated_at), style="dim"),
    ]


def sparkline(values: Iterable[float]) -> str:
    """The course of some values, one character each."""
    points = list(values)
    low, high = min(points, default=0.0), max(points, default=0.0)
    if high == low:
        return _SPARKS[3] * len(points)
    scale = (len(_SPARKS) - 1) / (high - low)
    return "".join(_SPARKS[round((value - low) * scale)] for value in points)


def format_price(price: float) -> str:
    """A price with two to eight decimals, as many as it has."""
    if abs(price) >= 1e9:
        return f"{price:.6g}"
    whole, _, decimals = f"{price:,.8f}".rstrip("0").partition(".")
    return f"{whole}.{decimals.ljust(2, '0')}"


def format_amount(amount: float) -> str:
    """A quantity in few characters: 950, 12.3k, 4.56M."""
    if amount >= 1e12:
        return f"{amount:.3g}"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if amount >= limit:
            scaled = amount / (1e3 if unit == "k" else limit)
            return f"{scaled:.4g}{unit}"
    return f"{amount:.6g}"


def format_age(seconds: float) -> str:
    """How long ago: 0.3s, 12s, 3m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    return f"{seconds:.0f}s" if seconds < 120 else f"{seconds / 60:.0f}m"
