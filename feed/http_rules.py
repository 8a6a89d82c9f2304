"""What an HTTP request must be to go further: its form and its size. No I/O.

Headers are pairs of name and value; names are in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

STALLED: Final = "stalled"
MALFORMED: Final = "malformed"
SHUT_OUT: Final = "shut_out"
ADDRESS: Final = "address"
FULL: Final = "full"
"""What refusals count as in the metrics."""

HEADERS_MAX: Final = 100
URL_MAX_BYTES: Final = 8 * 1024
HEAD_MAX_BYTES: Final = 16 * 1024
BODY_MAX_BYTES: Final = 64 * 1024
SLICE_BYTES: Final = 1024
"""What of a request is parsed at a time, before its size is looked at."""
_LINE_MAX_BYTES: Final = 8 * 1024
"""The longest line that the parser of WebSocket handshakes reads."""

_URL: Final = re.compile(rb"[\x21-\x7e]+")
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")

_MALFORMED: Final = HTTPStatus.BAD_REQUEST
_HEAD_TOO_LARGE: Final = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
_URL_TOO_LONG: Final = HTTPStatus.REQUEST_URI_TOO_LONG
_BODY_TOO_LARGE: Final = HTTPStatus.REQUEST_ENTITY_TOO_LARGE

Headers = Sequence[tuple[bytes, bytes]]


class Refusal(Exception):
    """A request that goes no further; the connection ends with it.

    Attributes:
        headers: what its answer says besides.
        reason: what it counts as in the metrics.
    """

    def __init__(self, status: HTTPStatus, headers: Headers = (), reason: str = MALFORMED) -> None:
        super().__init__(status.phrase)
        self.status = status
        self.headers = headers
        self.reason = reason


def check_size(size: int, headers: int, *, in_head: bool) -> None:
    """Look whether more may come of a request; raises Refusal.

    Args:
        size: bytes that have come of its head or, behind that, of its body. A body's size is that
            of its chunks, and may include the end of its head.
        headers: how many have come.
    """
    if headers > HEADERS_MAX or (in_head and size >= HEAD_MAX_BYTES):
        raise Refusal(_HEAD_TOO_LARGE)
    if size > BODY_MAX_BYTES + SLICE_BYTES:
        raise Refusal(_BODY_TOO_LARGE)


def check_url_size(url: bytes) -> None:
    """Look whether more may come of a URL; raises Refusal."""
    if len(url) > URL_MAX_BYTES:
        raise Refusal(_URL_TOO_LONG)


def check_head(url: bytes, version: str, headers: Headers) -> bool:
    """Whether a body follows a complete head; RFC 9112, sections 3.2 and 6.3.

    The parser has made sure that there is one length at the most, and that it is a number.

    Raises:
        Refusal: that is not clear, or too much; or it is not clear what or which host is meant.
    """
    if len(headers) > HEADERS_MAX:
        raise Refusal(_HEAD_TOO_LARGE)
    if not _URL.fullmatch(url):
        raise Refusal(_MALFORMED)
    if version not in ("1.0", "1.1"):
        raise Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    fields = dict(headers)
    hosts = [name for name, _ in headers].count(b"host")
    if hosts > 1 or (version == "1.1" and not hosts):
        raise Refusal(_MALFORMED)
    if hosts and not _HOST.fullmatch(fields[b"host"]):
        raise Refusal(_MALFORMED)
    length = int(fields.get(b"content-length", 0))
    is_coded = b"transfer-encoding" in fields
    if is_coded and (b"content-length" in fields or version == "1.0"):
        raise Refusal(_MALFORMED)
    if length > BODY_MAX_BYTES:
        raise Refusal(_BODY_TOO_LARGE)
    return is_coded or length > 0


def check_handshake(method: bytes, url: bytes, headers: Headers) -> None:
    """Refuse what the WebSocket library would leave without an answer; raises Refusal.

    What it reads it answers itself: a bad key, or another version (RFC 6455, section 4.2.2).
    """
    if method != b"GET":
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, [(b"allow", b"GET")])
    if len(b"GET  HTTP/1.1\r\n" + url) > _LINE_MAX_BYTES:
        raise Refusal(_URL_TOO_LONG)
    if any(len(name) + len(value) + 4 > _LINE_MAX_BYTES for name, value in headers):
        raise Refusal(_HEAD_TOO_LARGE)
