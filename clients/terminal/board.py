"""Everything on the terminal: the market, the selected symbol's candles and the view."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from clients.terminal.candles import TIMEFRAMES, Candles, draw_chart
from clients.terminal.market import Market, Row
from clients.terminal.tables import (
    SymbolTable,
    change,
    draw_audit,
    format_age,
    format_amount,
    format_price,
    last_price,
)
from clients.terminal.view import HELP, Page, View, ViewRequest
from tickcast.client.accounts import Report
from tickcast.commands.terminal import Line, Segment, clip, spread
from tickcast.wire.ticks import Tick

_MESSAGE_S: Final = 5.0
_KEYS: Final = "? help  q quit  Enter candles  / search  s sort  p pause  a audit  e encoding"
_CHART_KEYS: Final = "? help  q quit  Esc table  ↑↓ symbol  1-4 timeframe  p pause  e encoding"


class ConnectionStatus(NamedTuple):
    """The state of the connection."""

    url: str
    encoding: str
    connected: bool
    waiting: int = 0


class _PausedView(NamedTuple):
    market: Market
    candles: Candles | None
    since: float


class Board:
    """Processes ticks and keys, and renders lines."""

    def __init__(self, page: Page = Page.TABLE) -> None:
        self.market = Market()
        self.view = View(page)
        # Whether the screen needs to be redrawn.
        self.changed = True
        self._candles: Candles | None = None
        self._paused: _PausedView | None = None
        # Text for the last line, and when it was set.
        self._message: tuple[str, float] = ("", 0.0)
        self._table = SymbolTable()
        self._report: Report | None = None

    def add_ticks(self, ticks: Iterable[Tick], now: float) -> None:
        """Update from ticks that arrived at `now`."""
        self.market.add_ticks(ticks, now)
        self.changed = True

    def update_rates(self, now: float) -> None:
        """Update rates as time passes, even if no ticks arrive."""
        if self.market.update_rates(now):
            self.changed = True

    def begin_chart(self) -> Candles | None:
        """Show candles of the selected symbol and return them, empty, for the caller to fill."""
        self._candles = None
        if self.view.selected is not None:
            self._candles = Candles(self.view.selected, self.view.timeframe)
            self._paused = None  # The paused display has no such candles.
        return self._candles

    def show_message(self, text: str, now: float) -> None:
        """Show the user a message for a few seconds."""
        self._message = (text, now)
        self.changed = True

    def press(self, key: str, now: float) -> ViewRequest | None:
        """Handle a key press and return what it asks of the program, if anything."""
        self.changed = True
        request = self.view.press(key)
        if request is not ViewRequest.PAUSE:
            return request
        if self._paused is not None:
            self._paused = None
        else:
            candles = self._candles and self._candles.snapshot()
            self._paused = _PausedView(self.market.snapshot(), candles, now)
        return None

    # Rendering

    def render(
        self,
        width: int,
        height: int,
        now: float,
        status: ConnectionStatus,
        report: Callable[[], Report],
    ) -> list[Line]:
        """Return exactly `height` lines, none wider than `width`."""
        self.changed = False
        market, candles, shown_at = self._paused or (self.market, self._candles, now)
        body_height = max(0, height - 3)
        self.view.lines = max(1, body_height - 1)
        self.view.arrange(market, shown_at)
        summary: Line = []
        match self.view.page:
            case Page.TABLE:
                summary = self._summary(market)
                rows = [market.rows[symbol] for symbol in self.view.visible()]
                body = self._table.draw(rows, self.view.selected, self.view.sort, shown_at, width)
            case Page.CHART:
                row = market.rows.get(self.view.selected or "")
                summary = _headline(row, shown_at) if row else []
                body = _chart(candles, row, self.view.timeframe, width, body_height)
            case Page.AUDIT:
                summary = [("what became of every tick", "dim")]
                if self._paused is None or self._report is None:
                    self._report = report()
                body = draw_audit(self._report, width, body_height)
            case Page.HELP:
                body = [[(keys, "key"), (text, "")] for keys, text in HELP]
        body = [*body, *([] for _ in range(body_height))][:body_height]
        lines = [self._header(status, now, width), summary, *body, self._footer(now)]
        return [clip(line, width) for line in lines][:height]

    def _header(self, status: ConnectionStatus, now: float, width: int) -> Line:
        state: Segment = ("● live", "good")
        if not status.connected:
            state = ("○ DISCONNECTED, reconnecting …", "bad")
        elif self._paused is not None:
            ticks = self.market.ticks - self._paused.market.ticks
            age = format_age(now - self._paused.since)
            state = (f"‖ PAUSED for {age}, {ticks:,} ticks since", "paused")
        waiting = [(f"{status.waiting:,} waiting  ", "paused")] if status.waiting else []
        left: Line = [("tickcast ", "bold"), (status.url, "dim")]
        return spread(left, [*waiting, (f"{status.encoding}  ", "dim"), state], width)

    def _summary(self, market: Market) -> Line:
        view, found = self.view, len(self.view.order)
        text = f"{found:,} symbol{'s' * (found != 1)}"
        if found > view.lines:
            text = f"{view.top + 1}–{min(view.top + view.lines, found)} of {text}"
        if market.hidden:
            text += f", the busiest; {len(market.hidden):,} more are hidden"
        line: Line = [(text, ""), (f" · {market.rate:,.0f} ticks/s · by {view.sort}", "dim")]
        if view.query:
            line.append((f" · with “{view.query}”", "key"))
        return line

    def _footer(self, now: float) -> Line:
        if self.view.typing:
            return [("/", "key"), (self.view.query, "bold"), ("▏ ", ""),
                    ("Enter keeps it, Esc shows all", "dim")]  # fmt: skip
        text, since = self._message
        if text and now - since < _MESSAGE_S:
            return [(text, "paused")]
        line: Line = []
        for item in (_CHART_KEYS if self.view.page is Page.CHART else _KEYS).split("  "):
            key, _, meaning = item.partition(" ")
            line += [(key, "key"), (f" {meaning}  ", "dim")]
        return line


def _headline(row: Row, now: float) -> Line:
    line: Line = [(row.symbol, "bold"), ("  ", ""), last_price(row, now), (" ", ""),
                  change(row, now)]  # fmt: skip
    if row.quote:
        bid = format_price(row.quote.bid_price, row.decimals)
        ask = format_price(row.quote.ask_price, row.decimals)
        line.append((f"  bid {bid}  ask {ask}", ""))
    return [*line, (f"  volume {format_amount(row.volume)}  {row.rate:,.1f} ticks/s", "dim")]


def _chart(
    candles: Candles | None, row: Row | None, timeframe: str, width: int, height: int
) -> list[Line]:
    tabs: Line = []
    for name in TIMEFRAMES:
        tabs += [(f" {name} ", "selected" if name == timeframe else "dim"), (" ", "")]
    if candles is None or height < 2:
        return [tabs]
    decimals = row.decimals if row else 2
    if latest := candles.latest(1)[0]:
        prices = (latest.open, latest.high, latest.low, latest.close)
        for name, price in zip("OHLC", prices, strict=True):
            tabs += [(f" {name} ", "dim"), (format_price(price, decimals), "")]
        tabs += [(" V ", "dim"), (format_amount(latest.volume), "")]
    return [tabs, *draw_chart(candles, decimals, width, height - 1)]
