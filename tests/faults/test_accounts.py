"""The accounts that judge the product must themselves detect each kind of fault."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.accounts import Accounts, Sums


def tick(seq: int, id_: int | None = None, **more: Any) -> dict[str, Any]:
    return {"T": "t", "S": "A", "i": seq if id_ is None else id_, "seq": seq, **more}


def skipped(first: int, to: int, n: int) -> dict[str, Any]:
    return {"T": "skipped", "ch": "trades", "S": "A", "from": first, "to": to, "n": n}


def gap(first: int | None, to: int | None, reason: str) -> dict[str, Any]:
    return {"T": "gap", "ch": "trades", "S": "A", "from": first, "to": to, "reason": reason}


RESTART = gap(None, None, "epoch")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([tick(1), tick(2)], Sums(delivered=2)),
        ([tick(3, cf=2), tick(4)], Sums(delivered=2, merged=2)),
        ([tick(1), skipped(2, 4, 3), tick(5)], Sums(delivered=2, skipped=3)),
        ([tick(1), skipped(2, 4, 2), tick(5)], Sums(delivered=2, skipped=2, missing=1)),
        ([tick(1), gap(2, 4, "broker"), tick(5)], Sums(delivered=2, gapped=3)),
        ([tick(1), gap(2, 4, "broker"), tick(7)], Sums(delivered=2, gapped=3, missing=2)),
        ([tick(1), gap(1, 4, "broker"), tick(5)], Sums(delivered=2, gapped=4, repeated=1)),
        ([tick(2)], Sums(delivered=1, missing=1)),
        ([tick(1), tick(4)], Sums(delivered=2, missing=2)),
        ([tick(1), tick(1)], Sums(delivered=2, repeated=1, disordered=1)),
        ([tick(1), tick(3, cf=2)], Sums(delivered=2, merged=2, repeated=1)),
        (
            [tick(1), tick(3), tick(2), tick(4)],
            Sums(delivered=4, missing=1, reordered=1, disordered=1),
        ),
        ([tick(1), tick(2, id_=1)], Sums(delivered=2, disordered=1)),
        ([tick(1), tick(2), tick(1, id_=3)], Sums(delivered=3, repeated=1)),
        ([tick(1), RESTART, tick(1, id_=2)], Sums(delivered=2, restarts=1)),
        ([tick(1), RESTART, tick(2)], Sums(delivered=2, restarts=1, missing=1)),
        ([tick(1), RESTART, tick(2, snap=True)], Sums(delivered=2, restarts=1)),
        ([tick(1), tick(3, snap=True)], Sums(delivered=2, missing=1)),
        ([gap(None, 7, "retention"), tick(8)], Sums(delivered=1)),
        ([gap(None, 7, "retention"), tick(9)], Sums(delivered=1, missing=1)),
    ],
)
def test_books_show_what_happened(messages: list[dict[str, Any]], expected: Sums) -> None:
    accounts = Accounts()
    accounts.expect("trades", "A", after=0)
    for message in messages:
        accounts.take(message)
    assert accounts.sums == expected


def test_streams_are_told_apart() -> None:
    accounts = Accounts()
    for message in (tick(7), {**tick(1), "T": "q"}, tick(8), {**tick(2), "S": "B"}):
        accounts.take(message)
    assert accounts.sums == Sums(delivered=4)
