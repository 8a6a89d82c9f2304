"""Limits on the messages and subscriptions of one client, without a session."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from feed.access.action_policy import ActionPolicy, MessageLimiter, price_of
from feed.access.entitlements import OPEN_GRANT, Entitlements, Grant, Proof
from tickcast.wire.actions import Ping, Unsubscribe
from tickcast.wire.errors import Fault, InvalidAction, SessionEnded
from tickcast.wire.parsing import parse_action
from tickcast.wire.subscriptions import Subscription

ES = Subscription("trades", "ES")
SOME = Grant(Proof.KEY, "desk", Entitlements(feeds=("live",), symbols=("ES", "BTC-*")))


def check(policy: ActionPolicy, held: set[Subscription] | None = None, **action: Any) -> object:
    return policy.check_message(msgspec.json.encode(action).decode(), 0.0, held or set())


def fault_of(policy: ActionPolicy, held: set[Subscription] | None = None, **action: Any) -> Fault:
    with pytest.raises(InvalidAction) as error:
        check(policy, held, id=7, **action)
    assert error.value.id == 7
    return error.value.fault


def test_a_client_that_has_not_authenticated_may_only_authenticate() -> None:
    policy = ActionPolicy("live", None, 10, None)
    assert fault_of(policy, action="ping") is Fault.NOT_AUTHENTICATED
    assert policy.narrow({ES: 1}) == {}
    check(policy, action="auth", key="a", secret="b")
    policy.grant = SOME
    check(policy, action="ping")
    assert fault_of(policy, action="auth", key="a", secret="b") is Fault.ALREADY_AUTHENTICATED


def test_subscriptions_are_narrowed_to_the_entitlements() -> None:
    policy = ActionPolicy("live", SOME, 10, None)
    check(policy, action="subscribe", trades=["ES", "BTC-USD", "*"])
    refused = fault_of(policy, action="subscribe", trades=["ES", "NQ"])
    assert refused is Fault.INSUFFICIENT_SUBSCRIPTION
    whole = Subscription("trades", "*")
    assert policy.narrow({whole: 1}) == {ES: 1, Subscription("trades", "BTC-*"): 1}
    assert ActionPolicy("other", SOME, 10, None).narrow({whole: 1}) == {}


def test_a_held_subscription_counts_once_towards_the_limit() -> None:
    policy = ActionPolicy("live", OPEN_GRANT, 2, None)
    check(policy, {ES}, action="subscribe", trades=["ES", "NQ"])
    assert fault_of(policy, {ES}, action="subscribe", trades=["NQ", "YM"]) is Fault.SYMBOL_LIMIT


def test_every_message_is_charged_even_an_invalid_one() -> None:
    policy = ActionPolicy("live", OPEN_GRANT, 2, MessageLimiter(1, 2))
    assert fault_of(policy, action="dance") is not Fault.RATE_LIMITED
    check(policy, action="ping")
    assert fault_of(policy, action="ping") is Fault.RATE_LIMITED
    for _ in range(9):
        fault_of(policy, action="ping")
    with pytest.raises(SessionEnded):
        check(policy, action="ping")


def test_the_price_of_a_refused_message_is_refunded() -> None:
    policy = ActionPolicy("live", OPEN_GRANT, 1000, MessageLimiter(0, 3))
    check(policy, action="ping")
    many = [f"S{number}" for number in range(150)]
    for _ in range(3):  # Each costs 2.5, and 2 are left.
        assert fault_of(policy, action="subscribe", trades=many) is Fault.RATE_LIMITED
    check(policy, action="ping")
    check(policy, action="ping")
    assert fault_of(policy, action="ping") is Fault.RATE_LIMITED


def test_a_long_message_is_charged_before_it_is_parsed_and_its_id_is_echoed() -> None:
    policy = ActionPolicy("live", OPEN_GRANT, 10, MessageLimiter(0, 3))
    long = "x" * 40_000
    assert fault_of(policy, action="ping", text=long) is Fault.INVALID_SYNTAX
    assert fault_of(policy, action="ping", text=long) is Fault.RATE_LIMITED
    check(policy, action="ping")


def test_far_too_many_names_are_refused_before_they_are_validated() -> None:
    policy = ActionPolicy("live", OPEN_GRANT, 10, None)
    assert fault_of(policy, action="subscribe", trades=["?"] * 21) is Fault.SYMBOL_LIMIT
    assert fault_of(policy, action="subscribe", trades=["?"] * 20) is Fault.INVALID_SYNTAX


def test_the_price_of_an_action_grows_with_its_symbols() -> None:
    symbols = [f"S{number}" for number in range(500)]
    assert price_of(Ping()) == 1
    assert price_of(Unsubscribe(frozenset(Subscription("trades", each) for each in symbols))) == 6
    resume = {"epoch": "e", "trades": dict.fromkeys(symbols, 7)}
    resuming = {"action": "subscribe", "trades": ["*"], "resume": resume}
    action = parse_action(msgspec.json.encode(resuming).decode())
    assert price_of(action) == pytest.approx(1.51)
