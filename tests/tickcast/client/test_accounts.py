from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import quote, trade
from tickcast.client.accounts import Gap, SequenceAccounts
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import Tick

ES = [Subscription("trades", "ES")]


def notice(kind: str, first: int | None, last: int | None, **more: Any) -> dict[str, Any]:
    return {"T": kind, "ch": "trades", "S": "ES", "from": first, "to": last, **more}


def record(accounts: SequenceAccounts, *events: Tick | dict[str, Any]) -> list[Any]:
    """Return what the application sees: numbers of ticks, and gaps."""
    seen: list[Any] = []
    for event in events:
        items = accounts.add_notice(event) if isinstance(event, dict) else accounts.add_tick(event)
        seen += [
            (item[2], item[3], item.reason) if isinstance(item, Gap) else item.seq for item in items
        ]
    return seen


def test_a_run_is_accounted_for() -> None:
    accounts = SequenceAccounts()
    assert record(accounts, trade(seq=5), trade(seq=8, conflated=2)) == [5, 8]
    assert record(accounts, notice("skipped", 9, 11, n=3), trade(seq=12)) == [
        (9, 11, "skipped"),
        12,
    ]
    gap = notice("gap", 13, 20, reason="retention")
    assert record(accounts, gap, trade(seq=21)) == [(13, 20, "retention"), 21]
    (report,) = accounts.report(3).streams
    assert (report.delivered, report.merged, report.skipped, report.gapped) == (4, 2, 3, 8)
    assert (report.published, report.seq, report.gaps) == (17, 21, 1)
    assert accounts.report(3).balanced
    assert accounts.report(3).reconnects == 3


def test_a_jump_is_reported_as_missing() -> None:
    accounts = SequenceAccounts()
    assert record(accounts, trade(seq=1), trade(seq=5)) == [1, (2, 4, "missing"), 5]
    assert accounts.report(0).total("missing") == 3
    assert not accounts.report(0).balanced


def test_repeated_ticks_are_left_out() -> None:
    accounts = SequenceAccounts()
    assert record(accounts, trade(seq=1), trade(seq=2), trade(seq=2), trade(seq=1)) == [1, 2]
    assert accounts.report(0).total("repeated") == 2
    assert not accounts.report(0).balanced


def test_a_restart() -> None:
    accounts = SequenceAccounts()
    restart = notice("gap", None, None, reason="epoch")
    assert record(accounts, trade(seq=7), restart, trade(seq=1)) == [7, (None, None, "epoch"), 1]
    assert accounts.epoch_needed
    accounts.set_epoch("e2")
    (account,) = accounts.resumable(ES)
    assert (account.epoch, account.seq) == ("e2", 1)
    assert record(accounts, restart, trade(seq=9, snap=True), trade(seq=10))[1:] == [9, 10]
    assert accounts.report(0).balanced
    assert accounts.report(0).total("restarts") == 2


def test_history_may_begin_with_a_gap_of_unknown_length() -> None:
    accounts = SequenceAccounts()
    gap = notice("gap", None, 40, reason="retention")
    assert record(accounts, gap, trade(seq=41)) == [(None, 40, "retention"), 41]
    assert accounts.report(0).balanced


def test_only_subscribed_streams_keep_their_positions() -> None:
    accounts = SequenceAccounts()
    record(accounts, trade(seq=1), trade("NQ", seq=4), quote(seq=2))
    held = [*ES, Subscription("quotes", "*")]
    names = [(account.channel, account.symbol) for account in accounts.resumable(held)]
    assert names == [("trades", "ES"), ("quotes", "ES")]
    assert [account.channel for account in accounts.resumable(held, resumed=ES)] == ["quotes"]
    accounts.end_runs_outside(ES)
    assert [account.symbol for account in accounts.resumable([Subscription("trades", "*")])] == [
        "ES"
    ]
    assert record(accounts, trade("NQ", seq=9)) == [9]
    assert accounts.report(0).balanced


def test_ticks_not_requested_after_a_cut_are_a_gap() -> None:
    accounts = SequenceAccounts()
    record(accounts, trade(seq=5))
    accounts.mark_unresumed()
    assert record(accounts, trade(seq=6)) == [6]
    accounts.mark_unresumed()
    assert record(accounts, trade(seq=9), trade(seq=10)) == [(7, 8, "retention"), 9, 10]
    assert accounts.report(0).balanced
    accounts.mark_unresumed()
    assert record(accounts, trade(seq=3), trade(seq=4)) == [(None, None, "epoch"), 3, 4]
    (report,) = accounts.report(0).streams
    assert (report.delivered, report.gapped, report.published, report.restarts) == (6, 2, 8, 1)
    assert accounts.report(0).balanced


def test_a_cut_is_a_gap_among_ticks_without_numbers() -> None:
    accounts = SequenceAccounts()
    assert record(accounts, trade(), trade()) == [None, None]
    accounts.mark_unresumed()
    assert record(accounts, trade(), trade()) == [(None, None, "retention"), None, None]
    (report,) = accounts.report(0).streams
    assert (report.delivered, report.published, report.seq) == (4, 0, None)
    assert accounts.report(0).balanced


def test_a_notice_of_ticks_accounted_for_already() -> None:
    accounts = SequenceAccounts()
    record(accounts, trade(seq=1), trade(seq=5, conflated=3))
    assert record(accounts, notice("skipped", 2, 4)) == []
    assert record(accounts, notice("gap", 4, 7, reason="broker")) == [(6, 7, "broker")]
    (report,) = accounts.report(0).streams
    assert (report.published, report.gapped, report.skipped, report.repeated) == (7, 2, 0, 5)


def test_after_a_restart_a_gap_may_cover_the_first_ticks() -> None:
    accounts = SequenceAccounts()
    restart = notice("gap", None, None, reason="epoch")
    begins = (trade(seq=7), notice("skipped", 7, 9), notice("gap", None, 7, reason="retention"))
    for begin in begins:
        record(accounts, trade(seq=3), restart, begin)
        assert accounts.report(0).balanced
        record(accounts, restart)


def test_the_epoch_of_a_new_numbering_is_confirmed() -> None:
    accounts = SequenceAccounts()
    accounts.set_epoch("e1")
    record(accounts, trade(seq=1))
    (account,) = accounts.resumable(ES)
    assert (account.epoch, account.confirmed, accounts.epoch_needed) == ("e1", False, True)
    accounts.set_epoch("e1")
    assert account.confirmed
    accounts.set_epoch("e2")
    assert (account.epoch, account.seq) == ("e1", 1)
    assert record(accounts, notice("gap", None, None, reason="epoch")) == [(None, None, "epoch")]
    accounts.set_epoch("e2")
    assert (account.epoch, account.confirmed) == ("e2", True)


def test_a_changed_epoch_is_confirmed_by_a_second_report() -> None:
    accounts = SequenceAccounts()
    accounts.set_epoch("e1")
    record(accounts, trade(seq=1))
    (account,) = accounts.resumable(ES)
    accounts.epoch_needed = False
    accounts.set_epoch("e2")
    assert (account.epoch, accounts.epoch_needed) == ("", True)
    accounts.set_epoch("e2")
    assert (account.epoch, account.confirmed) == ("e2", True)


def test_streams_are_bounded() -> None:
    accounts = SequenceAccounts(streams_max=10)
    for number in range(30):
        record(accounts, trade(f"S{number}", seq=1))
    assert len(accounts.report(0).streams) == 10


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["tick", "tick", "merged", "skipped", "gap", "epoch", "lost", "again"]),
        st.integers(1, 5),
    ),
    max_size=40,
)


@given(EVENTS)
def test_the_accounts_always_balance(events: list[tuple[str, int]]) -> None:
    """The server may do anything, right or wrong; what the application sees is contiguous."""
    accounts = SequenceAccounts()
    seen = record(accounts, trade(seq=1))
    seq, reached, lost, again = 1, 0, 0, 0
    for kind, count in events:
        if kind == "again":
            seen += record(accounts, trade(seq=max(1, seq - count + 1)))
            again += 1
        elif kind == "epoch":
            seen += record(accounts, notice("gap", None, None, reason="epoch"), trade(seq=1))
            reached, seq = reached + seq, 1
        elif kind == "gap":
            seen += record(accounts, notice("gap", seq + 1, seq + count, reason="broker"))
            seq += count
        elif kind == "skipped":
            seen += record(accounts, notice("skipped", seq + 1, seq + count, n=count))
            seq += count
        else:
            first = seq + 1 + (count if kind == "lost" else 0)
            seq = first + (count if kind == "merged" else 0)
            lost += count if kind == "lost" else 0
            seen += record(accounts, trade(seq=seq, conflated=seq - first))
    (report,) = accounts.report(0).streams
    explained = report.delivered + report.merged + report.skipped + report.gapped
    assert report.published == reached + seq == explained + report.missing
    assert (report.missing, report.repeated) == (lost, again)
    assert accounts.report(0).balanced is (not lost and not again)
    position = 0
    for item in seen:
        if isinstance(item, tuple):
            assert item[2] == "epoch" or item[0] == position + 1
            position = item[1] or 0
        else:
            assert item > position
            position = item
