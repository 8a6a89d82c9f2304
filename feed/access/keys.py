"""API keys and their secrets, and the text of the file that lists the keys. No I/O.

The file is TOML, with a table for each key:

    [keys.3f9a2c1d0b7e]
    name = "desk"
    hash = "$argon2id$…"
    feeds = ["live"]
    channels = ["trades", "quotes"]
    symbols = ["BTC-*"]
    publish = true
    max_connections = 5
    created = 2026-11-24T12:00:00Z
    expires = 2027-02-22T12:00:00Z
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Final

import msgspec
from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError
from msgspec import Meta, Struct

from feed.access.entitlements import ANY, Entitlements, Grant, Proof
from tickcast.wire.errors import InvalidSettings

KEYS_MAX: Final = 100_000
# The maximum length of a key's name, in characters.
NAME_MAX: Final = 64

_SECRET: Final = re.compile(r"tick_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
# The smallest parameters that OWASP recommends. A secret has 256 random bits and can't be guessed;
# the hash only has to make a leaked file of keys useless.
_HASHER: Final = PasswordHasher(
    time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
)


class Key(
    Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, dict=True
):
    """One API key.

    Attributes:
        name: a description of the owner, for people.
        hash: the Argon2id hash of the secret.
        feeds, channels, symbols: see `Entitlements`.
        publish: whether clients with the key may publish into what it covers.
        max_connections: how many connections may use the key at a time; None for no limit.
        created, expires, revoked: times, in UTC unless they have an offset.
    """

    name: Annotated[str, Meta(min_length=1, max_length=NAME_MAX)]
    hash: str
    feeds: tuple[str, ...] = (ANY,)
    channels: tuple[str, ...] = (ANY,)
    symbols: tuple[str, ...] = (ANY,)
    publish: bool = False
    max_connections: Annotated[int, Meta(ge=1)] | None = None
    created: datetime | None = None
    expires: datetime | None = None
    revoked: datetime | None = None

    # Cached so that all connections of the key share one index of symbols.
    @cached_property
    def entitlements(self) -> Entitlements:
        return Entitlements(self.feeds, self.channels, self.symbols)

    def is_valid(self, now_s: float) -> bool:
        """Whether the key is neither revoked nor expired."""
        return self.revoked is None and not (self.expires and _seconds(self.expires) <= now_s)

    def grant(self, key_id: str) -> Grant:
        """Return the rights that the key gives while it is valid."""
        expires_s = _seconds(self.expires) if self.expires else None
        return Grant(
            Proof.KEY, key_id, self.entitlements, self.max_connections, expires_s, self.publish
        )


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    keys: dict[str, Key] = {}


def parse_keys(text: str, source: str = "keys") -> dict[str, Key]:
    """Parse the text of a file of keys and return the keys by id.

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
        if not _is_hash(key.hash):
            raise InvalidSettings(f"{source}: key {key_id!a}: the hash is not an Argon2id hash")
    return keys


def make_key_id() -> str:
    """Create the id of a new key: 12 hexadecimal digits."""
    return secrets.token_hex(6)


def make_secret(key_id: str) -> str:
    """Create a new secret. It contains the id of its key, so it works without a separate id."""
    return f"tick_{key_id}_{secrets.token_urlsafe(32)}"


def key_id_of(secret: str) -> str | None:
    """Return the key id in a secret; None if the text is not a Tickcast secret."""
    match = _SECRET.fullmatch(secret)
    return match[1] if match else None


def hash_secret(secret: str) -> str:
    """Hash a secret with Argon2id, in the standard text form."""
    return _HASHER.hash(secret)


class SecretChecker:
    """Checks secrets against their hashes, and caches which were valid.

    A check takes about 20 ms of CPU time, which is what makes the hash safe. With the cache, a
    thousand clients that reconnect at once need no checks. The cache contains only digests, keyed
    with a random value of this process.
    """

    def __init__(self) -> None:
        self._pepper = secrets.token_bytes(32)
        # Digests of valid secrets, by the hash of the key.
        self._digests: dict[str, bytes] = {}
        # Checked for keys that do not exist, so that timing does not reveal which ones do.
        self._decoy = hash_secret(make_secret(make_key_id()))

    def is_cached(self, secret: str, hashed: str | None) -> bool:
        """Whether the secret was found valid before. Takes microseconds."""
        digest = self._digests.get(hashed) if hashed else None
        return digest is not None and hmac.compare_digest(digest, self._digest(secret))

    def check(self, secret: str, hashed: str | None) -> bool:
        """Whether the secret matches the hash, which is None for a key that does not exist."""
        try:
            _HASHER.verify(hashed or self._decoy, secret)
        except (VerificationError, InvalidHashError):
            return False
        if hashed is None:
            return False
        self._digests[hashed] = self._digest(secret)
        return True

    def keep_only(self, hashes: Iterable[str]) -> None:
        """Forget all secrets except those of these hashes."""
        self._digests = {each: self._digests[each] for each in self._digests.keys() & set(hashes)}

    def _digest(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode(), key=self._pepper, digest_size=32).digest()


def _is_hash(text: str) -> bool:
    try:
        _HASHER.check_needs_rehash(text)
    except InvalidHashError:
        return False
    return text.startswith("$argon2id$")


def _seconds(when: datetime) -> float:
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
