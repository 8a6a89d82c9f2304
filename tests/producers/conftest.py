"""These tests use one store, which is emptied before each of them."""

from __future__ import annotations

from tests.shared_store import redis_url, shared_store

__all__ = ["redis_url", "shared_store"]
