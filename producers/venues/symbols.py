"""What a venue calls a market, and what we call it: the one rule, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from feed.errors import BadFrame
from feed.ticks import is_symbol

_OURS: Final = re.compile(r"[A-Z0-9][A-Za-z0-9.]*-[A-Z0-9]+", re.ASCII)


class UnknownMarket(BadFrame, ValueError):
    """A market whose name can't be made into a symbol, such as one in Chinese.

    Attributes:
        market: its name.
    """

    def __init__(self, market: str) -> None:
        super().__init__(f"{market[:40]!a} is no market's name")
        self.market = market[:40]


@dataclass(frozen=True)
class SymbolRule:
    """Ours is base and quote, joined by `-`, each by its name of today: `BTC-USD`.

    Attributes:
        separator: what the venue puts between base and quote; "" for nothing.
        renamed: the venue's old names of currencies, with those of today.
        quotes: where nothing separates the two, what a quote can be; the longest that fits is it.
    """

    separator: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    quotes: tuple[str, ...] = ()

    def ours(self, name: str) -> str:
        """Our symbol for the venue's name of a market.

        Raises:
            UnknownMarket: the name is of no known form.
        """
        base, quote = self._split(name)
        symbol = f"{self.renamed.get(base, base)}-{self.renamed.get(quote, quote)}"
        if not (_OURS.fullmatch(symbol) and is_symbol(symbol)):
            raise UnknownMarket(name)
        return symbol

    def theirs(self, symbol: str) -> str:
        """The venue's name for one of our symbols.

        Raises:
            ValueError: the symbol is not of our form, or would come back as another one.
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
