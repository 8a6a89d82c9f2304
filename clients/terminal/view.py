"""The user's view of the market, and the keys that change it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final

from clients.terminal.candles import TIMEFRAMES
from clients.terminal.market import Market, Row

SORTS: Final = ("symbol", "ticks/s", "change", "volume", "last")
_QUERY_MAX: Final = 32
_SETTLED_S: Final = 2.0
"""How long rows keep their places, so that the user can read and select them."""


class Page(Enum):
    """The page on the terminal."""

    TABLE = "table"
    CHART = "chart"
    AUDIT = "audit"
    HELP = "help"


class ViewRequest(Enum):
    """A request that a key makes of the program, beyond a change of view."""

    QUIT = "quit"
    CHART = "chart"
    """Load the candles of the selected symbol from the beginning."""
    NO_CHART = "no chart"
    """Stop loading candles."""
    ENCODING = "encoding"
    PAUSE = "pause"


class View:
    """The current page, selection, search and sort order.

    Attributes:
        order: all symbols in the table, in the current sort order.
        selected: the selected symbol, by default the first; None without symbols.
        top: the index of the symbol in the first line.
        room: the number of lines for symbols.
    """

    def __init__(self, page: Page = Page.TABLE) -> None:
        self.page = page
        self.sort: str = SORTS[0]
        self.query = ""
        self.typing = False
        self.timeframe = "5s"
        self.order: list[str] = []
        self.selected: str | None = None
        self.top = 0
        self.room = 1
        self._back = Page.TABLE
        self._is_chosen = False
        self._arranged: tuple[str, str, Market, int] | None = None
        self._arranged_at = 0.0

    # -- the table's rows

    def arrange(self, market: Market, now: float) -> None:
        """Sort and filter rows, and keep the selected one visible."""
        arranged = (self.sort, self.query, market, market.changes)
        is_stale = self.sort != SORTS[0] and now - self._arranged_at >= _SETTLED_S
        if arranged != self._arranged or is_stale:
            self._arranged, self._arranged_at = arranged, now
            self.order = self._sort(market.rows.values())
        if not self._is_chosen:
            # The user has selected no row, so select whichever symbol comes first.
            self.selected, self.top = next(iter(self.order), None), 0
        elif self.selected not in self.order:
            self.selected = self.order[min(self.top, len(self.order) - 1)] if self.order else None
        index = self._index()
        self.top = max(min(self.top, index), index - self.room + 1)
        self.top = max(0, min(self.top, len(self.order) - self.room))

    def _sort(self, rows: Iterable[Row]) -> list[str]:
        found = [row for row in rows if self.query.upper() in row.symbol.upper()]
        found.sort(key=lambda row: row.symbol)
        if self.sort != SORTS[0]:
            found.sort(key=_SORT_KEYS[self.sort], reverse=True)
        return [row.symbol for row in found]

    def _index(self) -> int:
        return self.order.index(self.selected) if self.selected in self.order else 0

    def visible(self) -> Sequence[str]:
        """The symbols that fit on the screen."""
        return self.order[self.top : self.top + self.room]

    # -- keys

    def press(self, key: str) -> ViewRequest | None:
        """Handle a key press; unknown keys are ignored."""
        if self.typing:
            return self._type(key)
        if key == "q":
            return ViewRequest.QUIT
        if self.page is Page.HELP:
            self.page = self._back
            return None
        if key in _MOVES:
            return self._move(key)
        if key in _TIMEFRAME_KEYS:
            return self._choose_timeframe(_TIMEFRAME_KEYS[key])
        return _WISHES[key] if key in _WISHES else self._act(key)

    def _act(self, key: str) -> ViewRequest | None:
        wish = None
        match key:
            case "enter":
                wish = self._open() if self.page is Page.TABLE else self._leave()
            case "escape":
                wish = self._leave()
            case "/":
                self.typing, self.page, wish = True, Page.TABLE, ViewRequest.NO_CHART
            case "s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
                self._is_chosen = self._is_chosen and self.page is not Page.TABLE
            case "a":
                self.page = Page.TABLE if self.page is Page.AUDIT else Page.AUDIT
                wish = ViewRequest.NO_CHART
            case "?" | "h":
                self._back, self.page = self.page, Page.HELP
        return wish

    def _type(self, key: str) -> ViewRequest | None:
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
        return None

    def _move(self, key: str) -> ViewRequest | None:
        if not self.order or self.page is Page.AUDIT:
            return None
        index = self._index() + _MOVES[key] * (self.room if key.startswith("page") else 1)
        self._is_chosen = True
        self.selected = self.order[max(0, min(index, len(self.order) - 1))]
        return ViewRequest.CHART if self.page is Page.CHART else None

    def _open(self) -> ViewRequest | None:
        if self.selected is None:
            return None
        self._is_chosen, self.page = True, Page.CHART
        return ViewRequest.CHART

    def _leave(self) -> ViewRequest | None:
        if self.page is Page.TABLE:
            self.query, self._is_chosen = "", False
            return None
        self.page = Page.TABLE
        return ViewRequest.NO_CHART

    def _choose_timeframe(self, timeframe: str) -> ViewRequest | None:
        if self.page is not Page.CHART or timeframe == self.timeframe:
            return None
        self.timeframe = timeframe
        return ViewRequest.CHART


_WISHES: Final = {"e": ViewRequest.ENCODING, "p": ViewRequest.PAUSE, " ": ViewRequest.PAUSE}
_TIMEFRAME_KEYS: Final = {str(number): name for number, name in enumerate(TIMEFRAMES, 1)}
_END: Final = 1_000_000
_MOVES: Final = {
    "up": -1, "k": -1, "down": 1, "j": 1, "page up": -1, "page down": 1,
    "home": -_END, "g": -_END, "end": _END, "G": _END,
}  # fmt: skip
_SORT_KEYS: Final[dict[str, Callable[[Row], float]]] = {
    "ticks/s": lambda row: row.rate,
    "change": lambda row: row.change,
    "volume": lambda row: row.volume,
    "last": lambda row: row.last,
}
