"""Secrets of API keys: made, hashed, and checked."""

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

# OWASP's smallest: a secret has 256 random bits, which nobody guesses. The hash only has to keep
# whoever reads the file from using it.
_HASHER: Final = PasswordHasher(
    time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
)


def make_key_id() -> str:
    """A new key's id: 12 hexadecimal digits."""
    return secrets.token_hex(6)


def make_secret(key_id: str) -> str:
    """A new secret: it names its key, so that it is enough by itself."""
    return f"tick_{key_id}_{secrets.token_urlsafe(_RANDOM_BYTES)}"


def key_id_of(secret: str) -> str | None:
    """The key that a secret names; None where the text is no secret of ours."""
    match = _SECRET.fullmatch(secret)
    return match[1] if match else None


def hash_secret(secret: str) -> str:
    """The Argon2id hash to keep, in its usual text form."""
    return _HASHER.hash(secret)


def is_hash(text: str) -> bool:
    """Whether the text is such a hash."""
    try:
        _HASHER.check_needs_rehash(text)
    except InvalidHashError:
        return False
    return text.startswith("$argon2id$")


class SecretChecker:
    """Compares secrets with their hashes, and remembers which were right.

    A check takes some 20 ms of a core, which is what makes it safe; when a thousand clients come
    back at once, their secrets are known already. Remembered is only a digest under a key of this
    process.
    """

    def __init__(self) -> None:
        self._pepper = secrets.token_bytes(32)
        self._known: dict[str, bytes] = {}
        self._stand_in = hash_secret(make_secret(make_key_id()))

    def is_known(self, secret: str, hashed: str | None) -> bool:
        """Whether the secret was found right before; takes microseconds."""
        known = self._known.get(hashed) if hashed else None
        return known is not None and hmac.compare_digest(known, self._digest(secret))

    def check(self, secret: str, hashed: str | None) -> bool:
        """Whether the secret is the hash's. It takes its time, for a key that is none as well.

        Args:
            hashed: None where there is no such key.
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
        """Forget all secrets but those of these hashes."""
        self._known = {each: self._known[each] for each in self._known.keys() & hashes}

    def _digest(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode(), key=self._pepper, digest_size=32).digest()
