"""Log messages of the subscriber about an outage."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import until
from tickcast.broker import subscriber
from tickcast.broker.client import make_client
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import BrokerUnavailable


async def test_an_outage_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = 0

    async def check_version(client: object) -> None:
        nonlocal attempts
        attempts += 1
        raise BrokerUnavailable("refused")

    async def nothing() -> None:
        raise AssertionError("it has never been connected")

    monkeypatch.setattr(subscriber, "_BACKOFF_FIRST_S", 0.001)
    monkeypatch.setattr(subscriber, "_BACKOFF_MAX_S", 0.001)
    monkeypatch.setattr(subscriber, "check_version", check_version)
    client = make_client("redis://127.0.0.1:1")
    receiving = asyncio.create_task(
        subscriber.Subscriber(client, lambda channel, data: None, nothing).run()
    )
    try:
        await until(lambda: attempts >= 20)
    finally:
        await cancel_and_wait([receiving])
        await client.aclose()
    assert [record.getMessage() for record in caplog.records] == [
        "Redis is away, trying again until it is back: refused"
    ]
