"""Grants: the rights that valid credentials give, and their expiry. No I/O."""

from __future__ import annotations

from enum import Enum
from typing import Final

from msgspec import Struct

from feed.access.entitlements import EVERYTHING, Entitlements


class Proof(Enum):
    """The kind of credentials that a client has presented."""

    NOTHING = "nothing"
    """The server does not ask for credentials."""
    KEY = "key"
    TOKEN = "token"  # noqa: S105


class Grant(Struct, frozen=True):
    """The rights of one client.

    Attributes:
        proof: the kind of credentials that gave the rights.
        subject: the owner of the rights: a key's id, or a token's `sub`; safe to log.
        entitlements: what the client may see.
        max_connections: how many connections the subject may have at a time; None for no limit.
        expires_s: when the rights end, in seconds since the Unix epoch; None for never.
    """

    proof: Proof = Proof.NOTHING
    subject: str = ""
    entitlements: Entitlements = EVERYTHING
    max_connections: int | None = None
    expires_s: float | None = None

    def is_renewed_by(self, other: Grant) -> bool:
        """Whether another grant replaces this one: it is for the same subject, with a new token."""
        same = other.proof is self.proof is Proof.TOKEN and other.subject == self.subject
        return same and other.expires_s != self.expires_s


OPEN_GRANT: Final = Grant()
"""The grant of every client on a server without authentication."""
