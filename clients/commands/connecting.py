"""What the commands share that connect to a server: options, checks and hints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import click

from tickcast.client.messages import Refused
from tickcast.client.stream import Stream, connect
from tickcast.wire.errors import ConnectionFailed, Fault, InvalidSettings
from tickcast.wire.subscriptions import is_pattern

# Opens a connection to the server, with further arguments of `connect`.
Connect = Callable[..., AbstractAsyncContextManager[Stream]]

ca_option: Final = click.option(
    "--ca",
    "ca_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="wss: trust the certificates in this PEM file; default: the system's.",
)


def read_token(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Read the token from the file that an option names."""
    if value is None:
        return None
    try:
        token = Path(value).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise click.BadParameter(f"{value}: {reason}") from None
    if not token.isascii() or not token.isprintable() or not token:
        raise click.BadParameter(f"{value} contains no token")
    return token


# The token is in a file because other local users can read a command line.
token_option: Final = click.option(
    "--token-file",
    "token",
    metavar="FILE",
    callback=read_token,
    help="File with the token or the API key's secret to show to the server.",
)


def connector(url: str, ca_file: str | None, token: str | None) -> Connect:
    """Return a function that connects to a server. Raises InvalidSettings."""
    if not url.startswith(("ws://", "wss://")):
        raise InvalidSettings(f"{url!a} does not begin with ws:// or wss://")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    return partial(connect, url, headers=headers, tls=ca_file)


def check_symbol(symbol: str) -> None:
    """Raise InvalidSettings if this is neither a symbol nor a pattern."""
    if not is_pattern(symbol):
        raise InvalidSettings(f"{symbol!a} is not a valid symbol")


@contextmanager
def token_hint(token: str | None) -> Iterator[None]:
    """Name the option in the error if a server requires credentials and none were given."""
    try:
        yield
    except Refused as error:
        if error.code == Fault.NOT_AUTHENTICATED.code and token is None:
            # The server's message names an action of the protocol, which is no help here.
            raise ConnectionFailed(
                "the server refused: 401 not authenticated; log in with --token-file FILE"
            ) from None
        raise
