from __future__ import annotations

import pytest

from clients.terminal.market import count_decimals
from clients.terminal.tables import (
    draw_audit,
    format_age,
    format_amount,
    format_price,
    sparkline,
)
from tests.builders import quote, trade
from tickcast.client.accounts import SequenceAccounts
from tickcast.commands.terminal import clip, plain


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([1, 1]) == "▄▄"
    assert sparkline([0, 7]) == "▁█"


def test_prices() -> None:
    prices = (1640.25, 5, 0.00012345, 1.23456789, 0, -37.63)
    assert [format_price(price, count_decimals(price)) for price in prices] == [
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


def drawn(accounts: SequenceAccounts, width: int, height: int = 24) -> list[str]:
    return [plain(line) for line in draw_audit(accounts.report(2), width, height)]


def accounts_of(*seqs: int) -> SequenceAccounts:
    accounts = SequenceAccounts()
    for seq in seqs:
        list(accounts.add_tick(trade("ES", seq=seq)))
    list(accounts.add_tick(quote("AA", seq=7)))
    return accounts


def test_audit_shows_totals_and_streams() -> None:
    lines = drawn(accounts_of(1, 2, 3), 120)
    assert [line.rstrip() for line in lines[:3]] == [
        "balanced, 2 streams, 2 reconnects",
        "4 published: 4 delivered, 0 merged, 0 skipped, 0 gapped",
        "0 missing, 0 repeated, 0 restarts, 0 snapshots",
    ]
    assert lines[3].split() == [
        "symbol", "channel", "seq", "delivered", "merged", "skipped", "gapped", "missing",
        "repeated", "restarts", "snapshots",
    ]  # fmt: skip
    assert [line.split()[:4] for line in lines[4:6]] == [
        ["AA", "quotes", "7", "1"], ["ES", "trades", "3", "3"],
    ]  # fmt: skip


def test_audit_puts_problems_first() -> None:
    lines = drawn(accounts_of(1, 5), 100)
    assert lines[0].startswith("NOT BALANCED")
    assert lines[4].split()[0] == "ES"


@pytest.mark.parametrize("width", [10, 40, 80, 200])
@pytest.mark.parametrize("height", [5, 24])
def test_audit_fits_the_terminal(width: int, height: int) -> None:
    accounts = accounts_of(1, 2)
    for number in range(50):
        list(accounts.add_tick(trade(f"SYMBOL{number}", seq=1_000_000)))
    lines = draw_audit(accounts.report(2), width, height)
    assert len(lines) <= height
    assert all(len(plain(line)) <= width for line in lines[3:])
    assert plain(clip(lines[0], width)) == plain(lines[0])[:width]


def test_audit_columns_that_do_not_fit_are_left_out() -> None:
    for width, shown in ((1, 1), (14, 1), (15, 2), (19, 2), (20, 3), (30, 3), (31, 4)):
        assert len(drawn(accounts_of(1, 2), width)[3].split()) == shown, width
