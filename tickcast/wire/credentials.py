"""Credentials, and how to find them in request headers. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from tickcast.wire.errors import AuthFailed

CREDENTIAL_MAX: Final = 8192
"""The maximum length of a key, secret or token, in characters."""

_KEY_ID: Final = "apca-api-key-id"
_SECRET: Final = "apca-api-secret-key"  # noqa: S105


class KeyAndSecret(Struct, frozen=True):
    """The id of an API key and its secret. The `repr` shows neither."""

    key: str
    secret: str

    @property
    def longest(self) -> int:
        """The length of its longer part, in characters."""
        return max(len(self.key), len(self.secret))

    def __repr__(self) -> str:
        return "KeyAndSecret(…)"


class Bearer(Struct, frozen=True):
    """A bearer token: a JSON Web Token, or a secret, which contains the id of its key."""

    text: str

    @property
    def longest(self) -> int:
        """Its length, in characters."""
        return len(self.text)

    def __repr__(self) -> str:
        return "Bearer(…)"


Credentials = KeyAndSecret | Bearer


def credentials_in(headers: Sequence[tuple[bytes, bytes]]) -> Credentials | None:
    """Find the credentials in the headers of a request. Returns None if there are none.

    Args:
        headers: lower-case names and values, as in an ASGI scope.

    Raises:
        AuthFailed: the headers contain incomplete, duplicate or conflicting credentials.
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
