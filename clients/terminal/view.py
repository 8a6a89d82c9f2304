"""The user's view of the market, and the keys that change it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final

from clients.terminal.candles import TIMEFRAMES
from clients.terminal.market import Market, Row

HELP: Final = (
    ("  ↑ ↓  k j       ", "select the symbol above or below"),
    ("  PgUp PgDn g G  ", "a page up or down; the first, the last"),
    ("  Enter          ", "candles of the selected symbol, and back"),
    ("  1 2 3 4        ", "candles of 1 s, 5 s, 1 min, 5 min"),
    ("  /              ", "search: only symbols that contain what you type"),
    ("  s              ", "sort by symbol, ticks/s, change, volume, last price"),
    ("  p              ", "pause the display; no ticks are lost"),
    ("  a              ", "audit: what became of every tick"),
    ("  e              ", "JSON or MessagePack: reconnects and resumes"),
    ("  Esc            ", "back to the table; there: show all, from the top"),
    ("  q  Ctrl-C      ", "quit"),
    ("", ""),
    ("  ", "Change, volume and sparkline count from when you began to watch."),
    ("  ", "The sparkline has a point a second, the latest price at its right end."),
    ("  ", "Sorted by anything but the symbol, rows stay in place for two seconds."),
)

_SORT_KEYS: Final[dict[str, Callable[[Row], float]]] = {
    "ticks/s": lambda row: row.rate,
    "change": lambda row: row.change,
    "volume": lambda row: row.volume,
    "last": lambda row: row.price,
}
SORTS: Final = ("symbol", *_SORT_KEYS)
_QUERY_MAX: Final = 32
# How long rows keep their places, so that the user can read and select them.
_SETTLED_S: Final = 2.0
_END: Final = 1_000_000
_MOVES: Final = {
    "up": -1, "k": -1, "down": 1, "j": 1, "page up": -1, "page down": 1,
    "home": -_END, "g": -_END, "end": _END, "G": _END,
}  # fmt: skip


class Page(Enum):
    """The page on the terminal."""

    TABLE = "table"
    CHART = "chart"
    AUDIT = "audit"
    HELP = "help"


class ViewRequest(Enum):
    """A request that a key makes of the program, beyond a change of view."""

    QUIT = "quit"
    # Load the candles of the selected symbol from the beginning, or stop loading candles.
    CHART = "chart"
    NO_CHART = "no chart"
    ENCODING = "encoding"
    PAUSE = "pause"


class View:
    """The current page, selection, search and sort order."""

    def __init__(self, page: Page = Page.TABLE) -> None:
        self.page = page
        self.sort = SORTS[0]
        self.query = ""
        self.typing = False
        self.timeframe = "5s"
        # All symbols in the table, in the current sort order.
        self.order: list[str] = []
        # The selected symbol; None without symbols.
        self.selected: str | None = None
        # The index of the symbol in the first line, and the number of lines for symbols.
        self.top = 0
        self.lines = 1
        self._page_before_help = Page.TABLE
        # Until the user selects a symbol, the first one is selected, whichever that is.
        self._user_selected = False
        self._arranged: tuple[str, str, Market, int] | None = None
        self._arranged_at = 0.0

    def arrange(self, market: Market, now: float) -> None:
        """Sort and filter rows, and keep the selected one visible."""
        arranged = (self.sort, self.query, market, market.changes)
        is_stale = self.sort != SORTS[0] and now - self._arranged_at >= _SETTLED_S
        if arranged != self._arranged or is_stale:
            self._arranged, self._arranged_at = arranged, now
            self.order = self._sorted(market.rows.values())
        if not self._user_selected:
            self.selected, self.top = next(iter(self.order), None), 0
        elif self.selected not in self.order:
            self.selected = self.order[min(self.top, len(self.order) - 1)] if self.order else None
        index = self._index()
        self.top = max(min(self.top, index), index - self.lines + 1)
        self.top = max(0, min(self.top, len(self.order) - self.lines))

    def _sorted(self, rows: Iterable[Row]) -> list[str]:
        found = [row for row in rows if self.query.upper() in row.symbol.upper()]
        found.sort(key=lambda row: row.symbol)
        if self.sort in _SORT_KEYS:
            found.sort(key=_SORT_KEYS[self.sort], reverse=True)
        return [row.symbol for row in found]

    def _index(self) -> int:
        return self.order.index(self.selected) if self.selected in self.order else 0

    def visible(self) -> Sequence[str]:
        """Return the symbols that fit on the screen."""
        return self.order[self.top : self.top + self.lines]

    # Keys

    def press(self, key: str) -> ViewRequest | None:
        """Handle a key press; unknown keys are ignored."""
        request = None
        match key:
            case _ if self.typing:
                self._edit_query(key)
            case "q":
                request = ViewRequest.QUIT
            case _ if self.page is Page.HELP:
                self.page = self._page_before_help
            case "e":
                request = ViewRequest.ENCODING
            case "p" | " ":
                request = ViewRequest.PAUSE
            case "?" | "h":
                self._page_before_help, self.page = self.page, Page.HELP
            case "enter" | "escape":
                request = self._change_page(key)
            case "/":
                self.typing, self.page = True, Page.TABLE
                request = ViewRequest.NO_CHART
            case "s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
                self._user_selected = self._user_selected and self.page is not Page.TABLE
            case "a":
                self.page = Page.TABLE if self.page is Page.AUDIT else Page.AUDIT
                request = ViewRequest.NO_CHART
            case "1" | "2" | "3" | "4":
                request = self._choose_timeframe(list(TIMEFRAMES)[int(key) - 1])
            case _:
                request = self._move(key)
        return request

    def _edit_query(self, key: str) -> None:
        match key:
            case "enter":
                self.typing = False
            case "escape":
                self.typing, self.query = False, ""
            case "backspace":
                self.query = self.query[:-1]
            case "up" | "down":
                self._move(key)
            case _ if len(key) == 1 and key.isprintable():
                self.query = (self.query + key)[:_QUERY_MAX]

    def _move(self, key: str) -> ViewRequest | None:
        if key not in _MOVES or not self.order or self.page is Page.AUDIT:
            return None
        index = self._index() + _MOVES[key] * (self.lines if key.startswith("page") else 1)
        self._user_selected = True
        self.selected = self.order[max(0, min(index, len(self.order) - 1))]
        return ViewRequest.CHART if self.page is Page.CHART else None

    def _change_page(self, key: str) -> ViewRequest | None:
        if self.page is not Page.TABLE:
            self.page = Page.TABLE
            return ViewRequest.NO_CHART
        if key == "escape":
            self.query, self._user_selected = "", False
        elif self.selected is not None:
            self._user_selected, self.page = True, Page.CHART
            return ViewRequest.CHART
        return None

    def _choose_timeframe(self, timeframe: str) -> ViewRequest | None:
        if self.page is not Page.CHART or timeframe == self.timeframe:
            return None
        self.timeframe = timeframe
        return ViewRequest.CHART
