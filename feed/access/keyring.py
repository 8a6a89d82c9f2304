"""Parse the file of API keys. This is the only module that does. No I/O.

The file is TOML, with a table for each key:

    [keys.3f9a2c1d0b7e]
    name = "desk"
    hash = "$argon2id$…"
    feeds = ["live"]
    channels = ["trades", "quotes"]
    symbols = ["BTC-*"]
    max_connections = 5
    created = 2026-11-24T12:00:00Z
    expires = 2027-02-22T12:00:00Z
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from feed.access.entitlements import ANY, Entitlements
from feed.access.grant import Grant, Proof
from feed.access.secrets import is_hash
from tickcast.wire.errors import InvalidSettings

KEYS_MAX: Final = 100_000
NAME_MAX: Final = 64
"""The maximum length of a key's name, in characters."""


class Key(
    Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, dict=True
):
    """One API key.

    Attributes:
        name: a description of the owner, for people.
        hash: the Argon2id hash of the secret.
        feeds, channels, symbols: see `Entitlements`.
        max_connections: how many connections may use the key at a time; None for no limit.
        created, expires, revoked: times, in UTC unless they have an offset.
    """

    name: Annotated[str, Meta(min_length=1, max_length=NAME_MAX)]
    hash: str
    feeds: tuple[str, ...] = (ANY,)
    channels: tuple[str, ...] = (ANY,)
    symbols: tuple[str, ...] = (ANY,)
    max_connections: Annotated[int, Meta(ge=1)] | None = None
    created: datetime | None = None
    expires: datetime | None = None
    revoked: datetime | None = None

    @cached_property
    def entitlements(self) -> Entitlements:
        """The key's entitlements, cached so that all its connections share one index of symbols."""
        return Entitlements(self.feeds, self.channels, self.symbols)

    def is_good(self, now_s: float) -> bool:
        """Whether the key is valid, neither revoked nor expired."""
        return self.revoked is None and not (self.expires and _seconds(self.expires) <= now_s)


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    keys: dict[str, Key] = {}


class KeyRing:
    """The keys of one file."""

    def __init__(self, keys: Mapping[str, Key] | None = None) -> None:
        self.keys = dict(keys or {})

    @property
    def hashes(self) -> frozenset[str]:
        """The hashes of all keys that are not revoked."""
        return frozenset(key.hash for key in self.keys.values() if key.revoked is None)

    def hash_of(self, key_id: str, now_s: float) -> str | None:
        """The hash of a valid key's secret; None if there is no such key."""
        key = self.keys.get(key_id)
        return key.hash if key is not None and key.is_good(now_s) else None

    def grant(self, key_id: str, now_s: float) -> Grant | None:
        """The rights that a key gives; None if it is not valid."""
        key = self.keys.get(key_id)
        if key is None or not key.is_good(now_s):
            return None
        expires_s = _seconds(key.expires) if key.expires else None
        return Grant(Proof.KEY, key_id, key.entitlements, key.max_connections, expires_s)


def parse_keys(text: str, source: str = "keys") -> KeyRing:
    """Parse the text of a file of keys.

    Raises:
        InvalidSettings: the text is invalid. The message names `source` and the problem.
    """
    try:
        keys = msgspec.convert(tomllib.loads(text), _File).keys
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettings(f"{source}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise InvalidSettings(f"{source}: {error}") from None
    if len(keys) > KEYS_MAX:
        raise InvalidSettings(f"{source}: {len(keys)} keys, at most {KEYS_MAX} are allowed")
    for key_id, key in keys.items():
        for fault in key.entitlements.faults():
            raise InvalidSettings(f"{source}: key {key_id!a}: {fault}")
        if not is_hash(key.hash):
            raise InvalidSettings(f"{source}: key {key_id!a}: hash is none of Argon2id's")
    return KeyRing(keys)


def _seconds(when: datetime) -> float:
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
