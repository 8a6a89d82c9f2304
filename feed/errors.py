"""Every error a client or a user can meet: wire codes, close codes and exceptions.

The codes are those of the protocol, version 1, the reserved ones included; `docs/protocol.md` lists
those in use, section "Errors and closing". No other module spells one.
"""

from __future__ import annotations

import logging
from enum import Enum, IntEnum
from typing import Final


class CloseCode(IntEnum):
    """WebSocket close codes (RFC 6455, section 7.4); 4000 and up are ours.

    40xx: do not reconnect. 41xx: reconnect with back-off. 42xx: reconnect now. 1012: when
    `shutdown` has said, else now.
    """

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    ABNORMAL = 1006
    """Never sent: the connection was cut."""
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
    """What can be wrong with a message or a connection: code, and the words `msg` begins with."""

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
        """The number in the error message's `code`."""
        return self.value[0]

    @property
    def words(self) -> str:
        """What the error message's `msg` begins with."""
        return self.value[1]


def reason_of(code: int) -> str:
    """A close code in words, for logs."""
    try:
        return CloseCode(code).name.lower().replace("_", " ")
    except ValueError:
        return "going away" if code == 1001 else "the client's own"


CLOSES: Final = {
    Fault.AUTH_FAILED: CloseCode.AUTH_FAILED,
    Fault.AUTH_TIMEOUT: CloseCode.AUTH_TIMEOUT,
    Fault.CONNECTION_LIMIT: CloseCode.CONNECTION_LIMIT,
    Fault.SLOW_CLIENT: CloseCode.SLOW_CLIENT,
    Fault.RATE_LIMITED: CloseCode.RATE_LIMITED,
    Fault.INTERNAL_ERROR: CloseCode.INTERNAL_ERROR,
    Fault.SHUTTING_DOWN: CloseCode.RESTART,
}
"""The close code that goes with a fault, where it ends the connection."""


CLOSE_GRACE_S: Final = 0.8
"""Time for a closing handshake. Then the connection is cut: behind a full buffer it never ends."""


class TickcastError(Exception):
    """Base of all errors that Tickcast raises on purpose; its text is meant for people."""


class InvalidTick(TickcastError):
    """A tick that must not be published."""


class InvalidAction(TickcastError):
    """A client message that the server answers with an error and otherwise ignores.

    Attributes:
        fault: which row of the error table it is.
        detail: what was wrong and what would be right; safe to show.
        id: the client's `id` for the message, to be echoed, where it could be read.
    """

    def __init__(self, fault: Fault, detail: str = "", id: int | str | None = None) -> None:
        super().__init__(detail or fault.words)
        self.fault = fault
        self.detail = detail
        self.id = id


class AuthFailed(TickcastError):
    """Credentials that open nothing; the text says why, in words that give nothing away."""


class TryAgain(TickcastError):
    """Credentials that could not be checked now. They may be right: it is worth trying again."""

    def __init__(self) -> None:
        super().__init__("too many credentials at once, try again later")


class TooManyConnections(TickcastError):
    """A limit on connections is reached.

    Attributes:
        room: which: `total`, `address:…`, or a key or token.
    """

    def __init__(self, room: str) -> None:
        super().__init__(f"too many connections: {room}")
        self.room = room


class Refused(TickcastError):
    """A handshake that is not answered with an upgrade; the text is for the client.

    Attributes:
        reason: one word for metrics and logs.
        status: of the HTTP response.
        retry_after_s: when it is worth trying again, if at all.
    """

    def __init__(self, reason: str, status: int, text: str, retry_after_s: int = 0) -> None:
        super().__init__(text)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s


class Ended(TickcastError):
    """A conversation that ends here.

    Attributes:
        fault: which row of the error table says why.
        detail: what was wrong; safe to show.
        id: the client's `id` for the message, where there was one.
    """

    def __init__(self, fault: Fault, detail: str = "", id: int | str | None = None) -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail
        self.id = id


class BrokerUnavailable(TickcastError):
    """Redis can't be reached, or stopped answering."""


class BrokerUntrusted(BrokerUnavailable):
    """What answers in place of Redis has a certificate that is not trusted. It may be mended."""


class BrokerUnsuitable(TickcastError):
    """Redis answers, but can't be used: too old, or access denied."""


class AccessDenied(BrokerUnsuitable):
    """Redis knows us, and does not let us do that; the text names the command and its keys."""


class AlreadyClaimed(TickcastError):
    """What only one program may do at a time is being done by another."""


class StoreUnavailable(TickcastError):
    """The embedded store could not be started or found."""


class InvalidSettings(TickcastError):
    """A setting that is unknown or out of range; the text names it."""


class InvalidRecording(TickcastError):
    """A file of recorded ticks that can't be read as one."""


class BadFrame(TickcastError):
    """A venue's frame that is not what its documentation says."""


class VenueRefused(TickcastError):
    """A venue that will not serve us, however often it is asked."""


class ConnectionFailed(TickcastError):
    """A server that can't be reached, or that turned the client away for good."""


class ReplayFailed(TickcastError):
    """A replay that can't begin, or that can't be steered."""


class InvalidTape(TickcastError):
    """A file that is no tape, or a damaged one."""


class TapeNotFound(TickcastError):
    """There is no tape of that name."""


class OutputFailed(TickcastError):
    """Standard output can't be written: no space, or the terminal is gone."""


class RecordingFailed(TickcastError):
    """A tape that can't be written: no space, no right, no file any more."""


def level_of(error: TickcastError) -> int:
    """The level at which to log what will be tried again: outages are logged elsewhere."""
    return logging.ERROR if isinstance(error, AccessDenied) else logging.DEBUG
