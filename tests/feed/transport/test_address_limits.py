"""Limits of one address, over all its connections."""

from __future__ import annotations

import pytest

from feed.transport import address_limits
from feed.transport.address_limits import AddressLimits


def limits() -> AddressLimits:
    return AddressLimits(
        ("10.0.0.0/8",), ("192.0.2.9",), bytes_per_s=1000, requests_per_s=2, requests_burst=3,
        shut_out_s=60,
    )  # fmt: skip


def test_one_limiter_per_network_and_none_for_exempt_addresses() -> None:
    all_ = limits()
    assert all_.of("10.1.2.3") is None
    assert all_.of("192.0.2.1") is all_.of("::ffff:192.0.2.1")
    assert all_.of("2001:db8::1") is all_.of("2001:db8::ffff:1")
    assert all_.of("2001:db8::1") is not all_.of("2001:db8:0:1::1")
    assert all_.of_peer("192.0.2.9") is None
    assert all_.of("192.0.2.9") is not None


def test_bytes_and_frames_count_together() -> None:
    limiter = limits().of("192.0.2.1")
    assert limiter is not None
    assert limiter.spend_bytes(7000, 0, 0.0)
    assert not limiter.spend_bytes(1, 1, 0.0)
    assert limiter.spend_bytes(1000, 0, 0.0)
    assert limiter.spend_bytes(1000, 1, 3.0)


def test_requests_are_refused_and_then_shut_out() -> None:
    limiter = limits().of("192.0.2.1")
    assert limiter is not None
    assert [limiter.spend_request(0.0) for _ in range(4)] == [0, 0, 0, 1]
    assert limiter.spend_request(1.0) == 0
    refused = 1
    while not limiter.shut_out_s(1.0):
        refused += limiter.spend_request(1.0)
    assert refused == 52
    assert limiter.shut_out_s(1.0) == 60
    assert limiter.shut_out_s(61.0) == 0


def test_floods_shut_an_address_out_for_a_while() -> None:
    seen: list[str] = []
    all_ = limits()
    all_.on_shut_out = seen.append
    limiter = all_.of("192.0.2.1")
    assert limiter is not None
    for _ in range(5):
        limiter.note_flood(0.0)
    assert limiter.shut_out_s(0.0) == 0
    for _ in range(5):
        limiter.note_flood(0.5)
    assert limiter.shut_out_s(0.5) == 60
    assert seen == ["192.0.2.1"]
    never = AddressLimits().of("192.0.2.1")
    assert never is not None
    for _ in range(20):
        never.note_flood(0.0)
    assert never.shut_out_s(0.0) == 0


def test_the_table_is_bounded_and_evicts_idle_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_limits, "_ADDRESSES_MAX", 3)
    all_ = limits()
    first = all_.of("192.0.2.1")
    for number in range(2, 5):
        all_.of(f"192.0.2.{number}")
        assert all_.of("192.0.2.1") is first
    assert len(all_) == 3
