"""What somebody who has shown good credentials may do, and for how long. No I/O."""

from __future__ import annotations

from enum import Enum
from typing import Final

from msgspec import Struct

from feed.access.entitlements import EVERYTHING, Entitlements


class Proof(Enum):
    """What a client has shown."""

    NOTHING = "nothing"
    """On a server that asks for nothing."""
    KEY = "key"
    TOKEN = "token"  # noqa: S105


class Grant(Struct, frozen=True):
    """The rights of one client.

    Attributes:
        proof: how it came by them.
        subject: whom they belong to: a key's id, or a token's `sub`; safe to log.
        entitlements: what it may see.
        max_connections: how many connections the subject may have at a time; None for any number.
        expires_s: when they end, in seconds since the Unix epoch; None for never.
    """

    proof: Proof = Proof.NOTHING
    subject: str = ""
    entitlements: Entitlements = EVERYTHING
    max_connections: int | None = None
    expires_s: float | None = None

    def is_renewed_by(self, other: Grant) -> bool:
        """Whether another takes the place of this one: the same subject's, with a new token."""
        same = other.proof is self.proof is Proof.TOKEN and other.subject == self.subject
        return same and other.expires_s != self.expires_s


UNASKED: Final = Grant()
"""What everybody has on a server without authentication."""
