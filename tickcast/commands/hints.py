"""Hints about command-line options for errors from a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tickcast.client.messages import Refused
from tickcast.wire.errors import ConnectionFailed, Fault

NOT_AUTHENTICATED: Final = (
    "the server refused: 401 not authenticated; log in with --token-file FILE"
)


@contextmanager
def token_hint(token: str | None) -> Iterator[None]:
    """Name the option in the error if a server requires credentials and none were given.

    Raises:
        ConnectionFailed: the error, with the hint.
    """
    try:
        yield
    except Refused as error:
        if error.code == Fault.NOT_AUTHENTICATED.code and token is None:
            raise ConnectionFailed(NOT_AUTHENTICATED) from None
        raise
