from __future__ import annotations

from tests.builders import quote, trade
from tickcast.client.accounts import Gap, SequenceAccounts, describe_gap, summarize


def accounts_of(*seqs: int) -> SequenceAccounts:
    accounts = SequenceAccounts()
    for seq in seqs:
        list(accounts.add_tick(trade("ES", seq=seq)))
    list(accounts.add_tick(quote("AA", seq=7)))
    return accounts


def test_gaps_as_text() -> None:
    assert describe_gap(Gap("trades", "ES", 5, 1000, "broker")) == (
        "trades ES: 5 to 1,000 will not come (broker)"
    )
    assert describe_gap(Gap("trades", "ES", None, 9, "retention")).startswith("trades ES: … to 9 ")
    assert describe_gap(Gap("bars", "ES", None, None, "epoch")) == (
        "bars ES: the numbering restarts"
    )


def test_summary_in_three_lines() -> None:
    first, second, third = summarize(accounts_of(1, 5).report(0))
    assert first == "NOT BALANCED, 2 streams, 0 reconnects"
    assert second.startswith("6 published: 3 delivered")
    assert third.startswith("3 missing, 0 repeated")


def test_large_totals_fit_eighty_columns() -> None:
    accounts = SequenceAccounts()
    list(accounts.add_tick(trade("ES", seq=1)))
    list(accounts.add_tick(trade("ES", seq=98_765_432, conflated=98_765_430)))
    assert max(map(len, summarize(accounts.report(9)))) <= 80
