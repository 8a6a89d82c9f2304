"""Tables of a stream's latest ticks, for example to view a market in a notebook."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from tickcast.wire.ticks import Bar, Quote, Tick, Trade

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

TICKS_MAX: Final = 100_000
"""Default for the number of ticks of each kind in a window."""

T = TypeVar("T", Trade, Quote, Bar)


class Window:
    """The latest trades, quotes and bars added to it.

    Args:
        ticks_max: how many of each kind to keep; the oldest are dropped.

    Attributes:
        trades, quotes, bars: the ticks, each in a `TickTable`.

    >>> from tickcast.wire.times import Time
    >>> window = Window(ticks_max=2)
    >>> window.add(
    ...     Trade(symbol="ES", price=price, size=1, time=Time(0)) for price in (100, 101, 102)
    ... )
    >>> window.trades.to_dict()["price"]
    [101, 102]
    >>> window.trades.to_polars().select("symbol", "price").rows()
    [('ES', 101.0), ('ES', 102.0)]
    """

    def __init__(self, ticks_max: int = TICKS_MAX) -> None:
        self.trades: TickTable[Trade] = TickTable(_TRADE_COLUMNS, ticks_max)
        self.quotes: TickTable[Quote] = TickTable(_QUOTE_COLUMNS, ticks_max)
        self.bars: TickTable[Bar] = TickTable(_BAR_COLUMNS, ticks_max)

    def add(self, ticks: Iterable[Tick]) -> None:
        """Add ticks, as returned by `Stream.read`."""
        for tick in ticks:
            if isinstance(tick, Trade):
                self.trades.rows.append(tick)
            elif isinstance(tick, Quote):
                self.quotes.rows.append(tick)
            else:
                self.bars.rows.append(tick)


class TickTable(Generic[T]):
    """Ticks of one kind, in order of arrival.

    Columns are named after the attributes. `time` is in nanoseconds, UTC. `id` is text, because
    some venues number their trades and others name them.

    Attributes:
        rows: the ticks.
    """

    def __init__(self, columns: dict[str, Callable[[Any], Any]], ticks_max: int) -> None:
        self.rows: deque[T] = deque(maxlen=ticks_max)
        self._columns = columns

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return a list for each column; times are whole nanoseconds since the Unix epoch."""
        return {name: [of(row) for row in self.rows] for name, of in self._columns.items()}

    def to_polars(self) -> pl.DataFrame:
        """Return a polars frame. Needs the extra `polars`: `pip install 'tickcast[polars]'`."""
        import polars as pl  # noqa: PLC0415 - an extra

        types = {name: _POLARS_TYPES.get(name, "Float64") for name in self._columns}
        schema = {name: getattr(pl, type_) for name, type_ in types.items()}
        frame = pl.DataFrame(self.to_dict(), schema=schema, orient="col")
        return frame.with_columns(pl.from_epoch("time", "ns").dt.replace_time_zone("UTC"))

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas frame. Needs the extra `pandas`: `pip install 'tickcast[pandas]'`."""
        import pandas as pd  # noqa: PLC0415 - an extra

        return pd.DataFrame(
            {
                name: pd.to_datetime(values, unit="ns", utc=True).as_unit("ns")
                if name == "time"
                else pd.array(values, dtype=_PANDAS_TYPES.get(name, "float64"))
                for name, values in self.to_dict().items()
            }
        )


def _of(name: str) -> Callable[[Tick], Any]:
    return lambda tick: getattr(tick, name)


def _id_of(trade: Trade) -> str | None:
    return None if trade.id is None else str(trade.id)


def _time_of(tick: Tick) -> int:
    return int(tick.time)


def _columns(names: str) -> dict[str, Callable[[Any], Any]]:
    return {"time": _time_of} | {name: _of(name) for name in names.split()}


_TRADE_COLUMNS: Final = _columns("symbol price size side id venue seq") | {"id": _id_of}
_QUOTE_COLUMNS: Final = _columns(
    "symbol bid_price bid_size ask_price ask_size bid_venue ask_venue seq"
)
_BAR_COLUMNS: Final = _columns("symbol timeframe open high low close volume trade_count vwap seq")
_TEXTS: Final = ("symbol", "side", "id", "venue", "bid_venue", "ask_venue", "timeframe")
_INTEGERS: Final = ("seq", "trade_count")
_POLARS_TYPES: Final = dict.fromkeys(_TEXTS, "String") | dict.fromkeys(
    (*_INTEGERS, "time"), "Int64"
)
_PANDAS_TYPES: Final = dict.fromkeys(_TEXTS, "string") | dict.fromkeys(_INTEGERS, "Int64")
