"""Convert between a venue's names of markets and our symbols, by one rule for both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tickcast.wire.errors import BadFrame
from tickcast.wire.ticks import is_symbol

_OURS: Final = re.compile(r"[A-Z0-9][A-Za-z0-9.]*-[A-Z0-9]+", re.ASCII)


class UnknownMarket(BadFrame, ValueError):
    """A market whose name can't be converted to a symbol, such as one in Chinese.

    Attributes:
        market: the name of the market.
    """

    def __init__(self, market: str) -> None:
        super().__init__(f"{market[:40]!a} is no market's name")
        self.market = market[:40]


@dataclass(frozen=True)
class SymbolRule:
    """A venue's rule for names of markets.

    Our symbol is base and quote, joined by `-`, each under its current name: `BTC-USD`.

    Attributes:
        separator: what the venue puts between base and quote; "" for nothing.
        renamed: maps the venue's old names of currencies to the current ones.
        quotes: the possible quote currencies if there is no separator. The longest match is used.
    """

    separator: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    quotes: tuple[str, ...] = ()

    def ours(self, name: str) -> str:
        """Return our symbol for the venue's name of a market.

        Raises:
            UnknownMarket: the name doesn't have a known form.
        """
        base, quote = self._split(name)
        symbol = f"{self.renamed.get(base, base)}-{self.renamed.get(quote, quote)}"
        if not (_OURS.fullmatch(symbol) and is_symbol(symbol)):
            raise UnknownMarket(name)
        return symbol

    def theirs(self, symbol: str) -> str:
        """Return the venue's name for one of our symbols.

        Raises:
            ValueError: the symbol doesn't have our form, or `ours` would return another symbol.
        """
        if not (_OURS.fullmatch(symbol) and is_symbol(symbol)):
            raise ValueError(f"{symbol[:40]!a} is not BASE-QUOTE in capitals, such as BTC-USD")
        name = symbol.replace("-", self.separator)
        try:
            back = self.ours(name)
        except ValueError:
            back = ""
        if not back:
            raise ValueError(f"{symbol!a}: the venue has no markets quoted in that")
        if back != symbol:
            raise ValueError(f"{symbol!a} is called {back} here")
        return name

    def _split(self, name: str) -> tuple[str, str]:
        if self.separator:
            base, found, quote = name.partition(self.separator)
            if found:
                return base, quote
        fitting = [quote for quote in self.quotes if name.endswith(quote) and name != quote]
        if not fitting:
            raise UnknownMarket(name)
        quote = max(fitting, key=len)
        return name.removesuffix(quote), quote
