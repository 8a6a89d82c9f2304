"""All errors that clients and users can encounter: wire codes, close codes and exceptions.

The codes are those of protocol version 1, including the reserved ones. `docs/protocol.md`, section
"Errors and closing", lists those in use. No other module contains a literal code.
"""

from __future__ import annotations

import logging
from enum import Enum, IntEnum
from typing import Final


class CloseCode(IntEnum):
    """WebSocket close codes (RFC 6455, section 7.4). Codes from 4000 on are our own.

    40xx: do not reconnect. 41xx: reconnect with back-off. 42xx: reconnect immediately. 1012:
    reconnect at the time given in `shutdown`, or immediately without one.
    """

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    # Never sent. It means that the connection was lost.
    ABNORMAL = 1006
    INVALID_DATA = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTART = 1012
    AUTH_FAILED = 4001
    AUTH_TIMEOUT = 4002
    CONNECTION_LIMIT = 4004
    RATE_LIMITED = 4101
    SLOW_CLIENT = 4102


class Fault(Enum):
    """Problems with a message or a connection: the code, and the words that `msg` starts with."""

    INVALID_SYNTAX = (400, "invalid syntax")
    NOT_AUTHENTICATED = (401, "not authenticated")
    AUTH_FAILED = (402, "auth failed")
    ALREADY_AUTHENTICATED = (403, "already authenticated")
    AUTH_TIMEOUT = (404, "auth timeout")
    SYMBOL_LIMIT = (405, "symbol limit exceeded")
    CONNECTION_LIMIT = (406, "connection limit exceeded")
    SLOW_CLIENT = (407, "slow client")
    INSUFFICIENT_SUBSCRIPTION = (409, "insufficient subscription")
    INVALID_ACTION = (410, "invalid action for this feed")
    TAPE_NOT_FOUND = (416, "tape not found")
    RATE_LIMITED = (429, "rate limited")
    INTERNAL_ERROR = (500, "internal error")
    BROKER_UNAVAILABLE = (503, "broker unavailable")
    SHUTTING_DOWN = (503, "shutting down")

    @property
    def code(self) -> int:
        """The value of `code` in the error message."""
        return self.value[0]

    @property
    def text(self) -> str:
        """The words that `msg` in the error message starts with."""
        return self.value[1]


def describe_close_code(code: int) -> str:
    """Describe a close code, for logs."""
    try:
        return CloseCode(code).name.lower().replace("_", " ")
    except ValueError:
        return "going away" if code == 1001 else "the client's own"


# The close codes of the faults that end a connection.
CLOSE_CODES: Final = {
    Fault.AUTH_FAILED: CloseCode.AUTH_FAILED,
    Fault.AUTH_TIMEOUT: CloseCode.AUTH_TIMEOUT,
    Fault.CONNECTION_LIMIT: CloseCode.CONNECTION_LIMIT,
    Fault.SLOW_CLIENT: CloseCode.SLOW_CLIENT,
    Fault.RATE_LIMITED: CloseCode.RATE_LIMITED,
    Fault.INTERNAL_ERROR: CloseCode.INTERNAL_ERROR,
    Fault.SHUTTING_DOWN: CloseCode.RESTART,
}

# The time allowed for a closing handshake, after which the connection is aborted. Behind a full
# buffer, the handshake would never finish.
CLOSE_GRACE_S: Final = 0.8


class TickcastError(Exception):
    """Base class of all errors that Tickcast raises deliberately. The text is meant for people."""


class InvalidTick(TickcastError):
    """A tick that must not be published."""


class InvalidAction(TickcastError):
    """A client message that the server answers with an error and otherwise ignores."""

    def __init__(self, fault: Fault, detail: str = "", id: int | str | None = None) -> None:
        super().__init__(detail or fault.text)
        self.fault = fault
        # What is wrong and what would be right. Safe to show, because it quotes little of the
        # message and only in ASCII.
        self.detail = detail
        # The `id` of the message, which the reply echoes, if it could be read.
        self.id = id


class AuthFailed(TickcastError):
    """Credentials that are not accepted. The text says why, without helping an attacker."""


class TryAgain(TickcastError):
    """Credentials that could not be checked now. They may be valid, so trying again makes sense."""

    def __init__(self) -> None:
        super().__init__("too many credentials at once, try again later")


class TooManyConnections(TickcastError):
    """A limit on connections has been reached."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"too many connections: {limit}")
        # Which one: `total`, `address:…`, or a key or token.
        self.limit = limit


class HandshakeRefused(TickcastError):
    """A handshake or request that is refused. The text is meant for the client."""

    def __init__(self, reason: str, status: int, text: str, retry_after_s: int = 0) -> None:
        super().__init__(text)
        # One word for metrics and logs.
        self.reason = reason
        # The status of the HTTP response.
        self.status = status
        # 0 for no suggestion.
        self.retry_after_s = retry_after_s


class SessionEnded(TickcastError):
    """An error that ends the connection. The text is for the client."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class BrokerUnavailable(TickcastError):
    """Redis can't be reached or has stopped answering."""


class BrokerUntrusted(BrokerUnavailable):
    """The server at the address of Redis has an untrusted certificate. That may be fixed later."""


class BrokerUnsuitable(TickcastError):
    """Redis answers, but can't be used: too old, or access denied."""


class AccessDenied(BrokerUnsuitable):
    """Redis has authenticated us but denies a command. The text names the command and its keys."""


class LeaseHeld(TickcastError):
    """Another program already does what only one program may do at a time."""


class StoreUnavailable(TickcastError):
    """The embedded store could not be started or found."""


class InvalidSettings(TickcastError):
    """A setting that is unknown or out of range. The text names it."""


class InvalidRecording(TickcastError):
    """A file of recorded ticks that can't be parsed."""


class BadFrame(TickcastError):
    """A frame from a venue that does not match the venue's documentation."""


class VenueRefused(TickcastError):
    """A venue that refuses to serve us; trying again does not help."""


class InvalidVenue(TickcastError):
    """A venue of another package that can't be used. The text says why."""


class ConnectionFailed(TickcastError):
    """A server that can't be reached, or that has permanently refused the client."""


class ReplayFailed(TickcastError):
    """A replay that can't start or can't be steered."""


class InvalidTape(TickcastError):
    """A file that is not a tape, or a damaged tape."""


class TapeNotFound(TickcastError):
    """A tape that does not exist."""


class OutputFailed(TickcastError):
    """Standard output can't be written: the disk is full, or the terminal is gone."""


class RecordingFailed(TickcastError):
    """A tape that can't be written: full disk, no permission, or a removed file."""


def log_level_of(error: TickcastError) -> int:
    """The level for logging an error that will be retried. Outages are logged elsewhere."""
    return logging.ERROR if isinstance(error, AccessDenied) else logging.DEBUG
