"""Create, hash and check the secrets of API keys."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

_SECRET: Final = re.compile(r"tick_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_RANDOM_BYTES: Final = 32

# The smallest parameters that OWASP recommends. A secret has 256 random bits and can't be guessed;
# the hash only has to make a leaked file of keys useless.
_HASHER: Final = PasswordHasher(
    time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
)


def make_key_id() -> str:
    """Create the id of a new key: 12 hexadecimal digits."""
    return secrets.token_hex(6)


def make_secret(key_id: str) -> str:
    """Create a new secret. It contains the id of its key, so it works without a separate id."""
    return f"tick_{key_id}_{secrets.token_urlsafe(_RANDOM_BYTES)}"


def key_id_of(secret: str) -> str | None:
    """The key id in a secret; None if the text is not a Tickcast secret."""
    match = _SECRET.fullmatch(secret)
    return match[1] if match else None


def hash_secret(secret: str) -> str:
    """Hash a secret with Argon2id, in the standard text form."""
    return _HASHER.hash(secret)


def is_hash(text: str) -> bool:
    """Whether the text is an Argon2id hash."""
    try:
        _HASHER.check_needs_rehash(text)
    except InvalidHashError:
        return False
    return text.startswith("$argon2id$")


class SecretChecker:
    """Checks secrets against their hashes, and caches which were valid.

    A check takes about 20 ms of CPU time, which is what makes the hash safe. With the cache, a
    thousand clients that reconnect at once need no checks. The cache contains only digests, keyed
    with a random value of this process.
    """

    def __init__(self) -> None:
        self._pepper = secrets.token_bytes(32)
        self._known: dict[str, bytes] = {}
        self._stand_in = hash_secret(make_secret(make_key_id()))

    def is_known(self, secret: str, hashed: str | None) -> bool:
        """Whether the secret was found valid before. Takes microseconds."""
        known = self._known.get(hashed) if hashed else None
        return known is not None and hmac.compare_digest(known, self._digest(secret))

    def check(self, secret: str, hashed: str | None) -> bool:
        """Whether the secret matches the hash. Takes as long for a key that does not exist.

        Args:
            hashed: the hash; None if there is no such key.
        """
        try:
            _HASHER.verify(hashed or self._stand_in, secret)
        except (VerificationError, InvalidHashError):
            return False
        if hashed is None:
            return False
        self._known[hashed] = self._digest(secret)
        return True

    def keep_only(self, hashes: frozenset[str]) -> None:
        """Forget all secrets except those of these hashes."""
        self._known = {each: self._known[each] for each in self._known.keys() & hashes}

    def _digest(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode(), key=self._pepper, digest_size=32).digest()
