"""Fixtures: a store that can be killed, its client, and connections to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.tickcast.broker.stores import OwnStore, Proxy, lossy_proxy, own_store
from tickcast.broker.client import make_client


@pytest.fixture
async def store(runtime_dir: Path) -> AsyncIterator[OwnStore]:
    async with own_store(runtime_dir) as store:
        yield store


@pytest.fixture
async def client(store: OwnStore) -> AsyncIterator[Redis]:
    async with make_client(store.url) as client:
        yield client


@pytest.fixture
async def proxy(store: OwnStore, runtime_dir: Path) -> AsyncIterator[Proxy]:
    async with lossy_proxy(runtime_dir / "proxy", runtime_dir / "socket") as proxy:
        yield proxy
