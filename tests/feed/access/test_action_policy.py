"""Limits on the messages and subscriptions of one client, without a session."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from feed.access.action_policy import ActionPolicy
from feed.access.conduct import MessageLimiter
from feed.access.entitlements import Entitlements
from feed.access.grant import OPEN_GRANT, Grant, Proof
from tickcast.wire.errors import Fault, InvalidAction, SessionEnded
from tickcast.wire.subscriptions import Subscription

ES = Subscription("trades", "ES")
SOME = Grant(Proof.KEY, "desk", Entitlements(feeds=("live",), symbols=("ES", "BTC-*")))


def read(rights: ActionPolicy, held: set[Subscription] | None = None, **action: Any) -> object:
    return rights.read(msgspec.json.encode(action).decode(), 0.0, held or set())


def fault_of(rights: ActionPolicy, held: set[Subscription] | None = None, **action: Any) -> Fault:
    with pytest.raises(InvalidAction) as error:
        read(rights, held, id=7, **action)
    assert error.value.id == 7
    return error.value.fault


def test_who_has_not_said_who_it_is_may_do_only_that() -> None:
    rights = ActionPolicy("live", None, 10, None)
    assert fault_of(rights, action="ping") is Fault.NOT_AUTHENTICATED
    assert rights.narrow({ES: 1}) == {}
    read(rights, action="auth", key="a", secret="b")
    rights.grant = SOME
    read(rights, action="ping")
    assert fault_of(rights, action="auth", key="a", secret="b") is Fault.ALREADY_AUTHENTICATED


def test_what_is_covered() -> None:
    rights = ActionPolicy("live", SOME, 10, None)
    read(rights, action="subscribe", trades=["ES", "BTC-USD", "*"])
    refused = fault_of(rights, action="subscribe", trades=["ES", "NQ"])
    assert refused is Fault.INSUFFICIENT_SUBSCRIPTION
    whole = Subscription("trades", "*")
    assert rights.narrow({whole: 1}) == {ES: 1, Subscription("trades", "BTC-*"): 1}
    assert ActionPolicy("other", SOME, 10, None).narrow({whole: 1}) == {}


def test_what_is_held_counts_once() -> None:
    rights = ActionPolicy("live", OPEN_GRANT, 2, None)
    read(rights, {ES}, action="subscribe", trades=["ES", "NQ"])
    assert fault_of(rights, {ES}, action="subscribe", trades=["NQ", "YM"]) is Fault.SYMBOL_LIMIT


def test_every_message_pays_also_one_that_is_wrong() -> None:
    rights = ActionPolicy("live", OPEN_GRANT, 2, MessageLimiter(1, 2))
    assert fault_of(rights, action="dance") is not Fault.RATE_LIMITED
    read(rights, action="ping")
    assert fault_of(rights, action="ping") is Fault.RATE_LIMITED
    for _ in range(9):
        fault_of(rights, action="ping")
    with pytest.raises(SessionEnded):
        read(rights, action="ping")


def test_what_a_refused_message_has_paid_is_given_back() -> None:
    rights = ActionPolicy("live", OPEN_GRANT, 1000, MessageLimiter(0, 3))
    read(rights, action="ping")
    many = [f"S{number}" for number in range(150)]
    for _ in range(3):  # Each costs 2.5, and 2 are left.
        assert fault_of(rights, action="subscribe", trades=many) is Fault.RATE_LIMITED
    read(rights, action="ping")
    read(rights, action="ping")
    assert fault_of(rights, action="ping") is Fault.RATE_LIMITED


def test_a_long_message_pays_before_it_is_read_and_its_id_is_told() -> None:
    rights = ActionPolicy("live", OPEN_GRANT, 10, MessageLimiter(0, 3))
    long = "x" * 40_000
    assert fault_of(rights, action="ping", text=long) is Fault.INVALID_SYNTAX
    assert fault_of(rights, action="ping", text=long) is Fault.RATE_LIMITED
    read(rights, action="ping")


def test_far_too_many_names_are_refused_before_they_are_looked_at() -> None:
    rights = ActionPolicy("live", OPEN_GRANT, 10, None)
    assert fault_of(rights, action="subscribe", trades=["?"] * 21) is Fault.SYMBOL_LIMIT
    assert fault_of(rights, action="subscribe", trades=["?"] * 20) is Fault.INVALID_SYNTAX
