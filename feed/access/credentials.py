"""Credentials, and where a handshake carries them. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from feed.errors import AuthFailed

CREDENTIAL_MAX: Final = 8192
"""Longest key, secret or token, in characters."""

_KEY_ID: Final = "apca-api-key-id"
_SECRET: Final = "apca-api-secret-key"  # noqa: S105


class KeyAndSecret(Struct, frozen=True):
    """An API key by its id, with its secret. The secret is left out of its `repr`."""

    key: str
    secret: str

    @property
    def longest(self) -> int:
        """Characters in its longer part."""
        return max(len(self.key), len(self.secret))

    def __repr__(self) -> str:
        return "KeyAndSecret(…)"


class Bearer(Struct, frozen=True):
    """One text that says it all: a JSON Web Token, or a secret, which names its own key."""

    text: str

    @property
    def longest(self) -> int:
        """Characters in it."""
        return len(self.text)

    def __repr__(self) -> str:
        return "Bearer(…)"


Credentials = KeyAndSecret | Bearer


def credentials_in(headers: Sequence[tuple[bytes, bytes]]) -> Credentials | None:
    """What the headers of a request carry; None where they carry nothing.

    Args:
        headers: names in lower case, and values, as ASGI has them.

    Raises:
        AuthFailed: they carry half of it, the same twice, or several.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        text = name.decode("latin-1")
        if text in ("authorization", _KEY_ID, _SECRET):
            if text in found:
                raise AuthFailed(f"{text} came twice")
            if len(value) > CREDENTIAL_MAX:
                raise AuthFailed(f"{text} is too long")
            found[text] = value.decode("latin-1").strip()
    if not found:
        return None
    if found.keys() == {_KEY_ID, _SECRET}:
        return KeyAndSecret(found[_KEY_ID], found[_SECRET])
    if found.keys() == {"authorization"}:
        scheme, _, text = found["authorization"].partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise AuthFailed("Authorization takes Bearer and a token or a secret")
        return Bearer(text.strip())
    raise AuthFailed(
        "credentials are Authorization alone, or APCA-API-KEY-ID with APCA-API-SECRET-KEY"
    )
