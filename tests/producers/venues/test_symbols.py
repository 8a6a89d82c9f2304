from __future__ import annotations

import pytest

from producers.venues.registry import VENUES


@pytest.mark.parametrize(
    ("venue", "theirs", "ours"),
    [
        ("coinbase", "BTC-USD", "BTC-USD"),
        ("kraken", "BTC/USD", "BTC-USD"),
        ("kraken", "AAPLx/USD", "AAPLx-USD"),
        ("binance", "BTCUSDT", "BTC-USDT"),
        ("binance", "ETHBTC", "ETH-BTC"),
        ("binance", "BTCTUSD", "BTC-TUSD"),
        ("binance", "1000SATSTRY", "1000SATS-TRY"),
        ("binance", "BTCFDUSD", "BTC-FDUSD"),
    ],
)
def test_symbols_round_trip(venue: str, theirs: str, ours: str) -> None:
    rule = VENUES[venue].symbols
    assert rule.to_symbol(theirs) == ours
    assert rule.to_market(ours) == theirs


@pytest.mark.parametrize(("old", "ours"), [("XBT/USD", "BTC-USD"), ("XDG/XBT", "DOGE-BTC")])
def test_old_names_are_understood(old: str, ours: str) -> None:
    assert VENUES["kraken"].symbols.to_symbol(old) == ours


@pytest.mark.parametrize(
    ("venue", "symbol", "message"),
    [
        ("coinbase", "btc-usd", "'btc-usd' is not BASE-QUOTE in capitals, such as BTC-USD"),
        ("coinbase", "BTCUSD", "'BTCUSD' is not BASE-QUOTE"),
        ("coinbase", "BTC-USD\n", r"'BTC-USD\\n' is not"),
        ("coinbase", "B" * 40 + "-USD", "is not BASE-QUOTE"),
        ("kraken", "BTC/USD", "'BTC/USD' is not BASE-QUOTE"),
        ("kraken", "XBT-USD", "'XBT-USD' is called BTC-USD here"),
        ("binance", "BTC-XYZ", "'BTC-XYZ': the venue has no markets quoted in that"),
        ("binance", "BT-CUSDT", "'BT-CUSDT' is called BTC-USDT here"),
    ],
)
def test_symbols_that_do_not_round_trip_are_refused(venue: str, symbol: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VENUES[venue].symbols.to_market(symbol)
