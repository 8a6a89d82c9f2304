from __future__ import annotations

from clients.terminal.formats import (
    count_decimals,
    format_age,
    format_amount,
    format_price,
    sparkline,
)


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([1, 1]) == "▄▄"
    assert sparkline([0, 7]) == "▁█"


def test_prices() -> None:
    assert [format_price(price) for price in (1640.25, 5, 0.00012345, 1.23456789, 0, -37.63)] == [
        "1,640.25", "5.00", "0.00012345", "1.23456789", "0.00", "-37.63",
    ]  # fmt: skip
    assert format_price(1640.25, 4) == "1,640.2500"
    assert format_price(1e300, 2) == "1e+300"
    assert [count_decimals(price) for price in (1, 1.5, 0.1 + 0.2, 1e-8, 1e300)] == [2, 2, 2, 8, 2]


def test_amounts() -> None:
    amounts = (0, 950, 0.5, 9_999, 12_300, 4_560_000, 2e9, 1e200)
    assert [format_amount(amount) for amount in amounts] == [
        "0", "950", "0.50", "9,999", "12.30k", "4.56M", "2.00G", "1e+200",
    ]  # fmt: skip


def test_ages() -> None:
    assert [format_age(age) for age in (-1, 0.25, 9.9, 9.97, 12, 300, 7200)] == [
        "0.0s", "0.2s", "9.9s", "10s", "12s", "5m", "2h",
    ]  # fmt: skip
