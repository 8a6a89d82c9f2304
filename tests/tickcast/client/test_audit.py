from __future__ import annotations

import pytest

from clients.terminal.audit import AuditTable
from tests.builders import quote, trade
from tickcast.client.accounts import Gap, SequenceAccounts, describe_gap, summarize
from tickcast.commands.lines import clip, plain


def drawn(accounts: SequenceAccounts, width: int, height: int = 24) -> list[str]:
    return [plain(line) for line in AuditTable().draw(accounts.report(2), width, height)]


def accounts_of(*seqs: int) -> SequenceAccounts:
    accounts = SequenceAccounts()
    for seq in seqs:
        list(accounts.add_tick(trade("ES", seq=seq)))
    list(accounts.add_tick(quote("AA", seq=7)))
    return accounts


def test_sums_and_streams() -> None:
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


def test_trouble_comes_first() -> None:
    lines = drawn(accounts_of(1, 5), 100)
    assert lines[0].startswith("NOT BALANCED")
    assert lines[4].split()[0] == "ES"


@pytest.mark.parametrize("width", [10, 40, 80, 200])
@pytest.mark.parametrize("height", [5, 24])
def test_it_fits_the_terminal(width: int, height: int) -> None:
    accounts = accounts_of(1, 2)
    for number in range(50):
        list(accounts.add_tick(trade(f"SYMBOL{number}", seq=1_000_000)))
    lines = AuditTable().draw(accounts.report(2), width, height)
    assert len(lines) <= height
    assert all(len(plain(line)) <= width for line in lines[3:])
    assert plain(clip(lines[0], width)) == plain(lines[0])[:width]


def test_gaps_in_words() -> None:
    assert describe_gap(Gap("trades", "ES", 5, 1000, "broker")) == (
        "trades ES: 5 to 1,000 will not come (broker)"
    )
    assert describe_gap(Gap("trades", "ES", None, 9, "retention")).startswith("trades ES: … to 9 ")
    assert describe_gap(Gap("bars", "ES", None, None, "epoch")) == (
        "bars ES: the numbering restarts"
    )


def test_in_three_lines_of_text() -> None:
    first, second, third = summarize(accounts_of(1, 5).report(0))
    assert first == "NOT BALANCED, 2 streams, 0 reconnects"
    assert second.startswith("6 published: 3 delivered")
    assert third.startswith("3 missing, 0 repeated")


def test_large_sums_fit_eighty_columns() -> None:
    accounts = SequenceAccounts()
    list(accounts.add_tick(trade("ES", seq=1)))
    list(accounts.add_tick(trade("ES", seq=98_765_432, conflated=98_765_430)))
    assert max(map(len, summarize(accounts.report(9)))) <= 80
