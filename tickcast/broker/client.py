"""Clients for Redis: how to create them, check their URLs and translate their errors."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tickcast.broker import keys
from tickcast.wire.errors import (
    AccessDenied,
    BrokerUnavailable,
    BrokerUnsuitable,
    BrokerUntrusted,
    InvalidSettings,
)

CONNECT_TIMEOUT_S: Final = 3.0
COMMAND_TIMEOUT_S: Final = 5.0
SCHEMES: Final = ("redis", "rediss", "unix")
_OLDEST_REDIS: Final = 7
_OLDEST_VALKEY: Final = 8
_REFUSALS: Final = (exceptions.AuthenticationError, exceptions.NoPermissionError)
# Error codes that a retry does not help. All others are treated as temporary: LOADING, READONLY,
# MASTERDOWN, CLUSTERDOWN, OOM, NOREPLICAS, MISCONF, BUSY, TRYAGAIN and codes of later versions. A
# producer that stopped at one of those would lose ticks; one that retries after a permanent error
# only logs it repeatedly. A script that gets such an error has written nothing: Redis checks before
# a script's first write.
_PERMANENT_CODES: Final = frozenset(
    {
        "ERR",  # unknown command, wrong arguments, a failing script
        "WRONGTYPE",
        "WRONGPASS",
        "NOAUTH",
        "NOPERM",
        "NOPROTO",
        "DENIED",  # protected mode
        "MOVED",  # the keys belong to another node of a cluster
        "ASK",
        "CROSSSLOT",
    }
)
# The query parameters that a URL may have. redis-py accepts more, such as `protocol`, but the code
# that reads replies relies on a fixed protocol version.
_PARAMETERS: Final = frozenset(
    "db username password client_name max_connections timeout socket_timeout"
    " socket_connect_timeout socket_keepalive health_check_interval".split()
)
_TLS_PARAMETERS: Final = frozenset(
    "ssl_ca_certs ssl_ca_path ssl_ca_data ssl_certfile ssl_keyfile ssl_password ssl_cert_reqs"
    " ssl_check_hostname ssl_ciphers ssl_min_version".split()
)
_DATABASE: Final = re.compile(r"[0-9]{1,9}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
# A host with a port and a database, or the path of a socket: what may be shown of a URL.
_ADDRESS: Final = re.compile(
    r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?(?:/\d{0,9})?|/[^@?#]*", re.ASCII
)
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+-]{0,19}", re.ASCII)
_SHOWN: Final = 40
_DENIED_IN_SCRIPT: Final = "ACL failure in script: "
_NAMES_SHOWN: Final = 4


class _Client(Redis):
    """A client whose permission errors name the refused command."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except exceptions.ResponseError as error:
            raise name_denied_command(error, args) from None


class _Pool(BlockingConnectionPool):
    """A pool that loses no connection when a task is cancelled while releasing one."""

    async def release(self, connection: Any) -> None:
        try:
            await super().release(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            self._in_use_connections.discard(connection)
            if connection not in self._available_connections:
                self._available_connections.append(connection)
            raise


def make_client(url: str, max_connections: int = 16) -> Redis:
    """Create a client for the Redis at `url`. It connects when it is first used.

    The client never retries a command, because only the caller knows whether that is safe. A
    command waits while all connections are busy.

    Raises:
        InvalidSettings: the URL is malformed, or a file that it names can't be used. The message
            contains no credentials.
    """
    try:
        _check_url(url)
        pool = _Pool.from_url(
            url,
            protocol=2,
            max_connections=max_connections,
            timeout=COMMAND_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=COMMAND_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            client_name="tickcast",
            driver_info=None,  # Otherwise redis-py sends its name, which takes a permission.
        )
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if path := pool.connection_kwargs.get(name):
                _check_file(path, is_authority=name == "ssl_ca_certs")
        # redis-py checks most parameters only when it creates a connection.
        pool.make_connection()  # type: ignore[no-untyped-call]
        return _Client.from_pool(pool)
    except (ValueError, TypeError, exceptions.RedisError) as error:
        raise InvalidSettings(f"redis_url: {safe_url(url)!a}: {error}") from None


def database_of(client: Redis) -> int:
    """Return the number of the database that a client uses."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


def channel_of(client: Redis, channel: str) -> str:
    """Return the name of a channel in the client's database; see `keys.channel_in`."""
    return keys.channel_in(database_of(client), channel)


def _check_url(url: str) -> None:
    """Reject URLs that redis-py would ignore in part, misread, or reject only when it connects.

    Raises ValueError. The message contains neither user nor password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.hostname
        parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        # The original message may quote any part of the URL.
        raise ValueError("the host or the part after the ? is malformed") from None
    if parts.scheme not in SCHEMES:
        raise ValueError("no redis://, rediss:// or unix:// URL")
    if _BAD_ESCAPE.search(url):
        raise ValueError("a % is not followed by two hexadecimal digits; write it as %25")
    if not url.isprintable() or " " in url:
        raise ValueError("it contains a blank or a control character; write a blank as %20")
    after_host = f"{parts.path}{parts.query}{parts.fragment}"
    if "@" in after_host and parts.scheme != "unix":
        raise ValueError("write /, ?, # and @ in a password as %2F, %3F, %23 and %40")
    if parts.fragment or url.endswith("#"):
        raise ValueError("it must not contain a #; write it as %23")
    _check_address(parts)
    known = _PARAMETERS | _TLS_PARAMETERS if parts.scheme == "rediss" else _PARAMETERS
    for name, value in parameters:
        if name not in known:
            (nearest,) = get_close_matches(name, sorted(known), n=1, cutoff=0)
            raise ValueError(f"unknown parameter {name[:_SHOWN]!a}; the nearest is {nearest}")
        if not value:
            raise ValueError(f"the parameter {name} is empty")
        if name == "db" and not _DATABASE.fullmatch(value):
            raise ValueError("db must be the number of a database")


def _check_address(parts: SplitResult) -> None:
    """Reject a URL without an address, instead of guessing as redis-py does."""
    if parts.scheme == "unix":
        if len(parts.path) < 2 or not parts.path.startswith("/") or parts.hostname:
            raise ValueError("a socket is written as unix:///PATH, with three slashes")
        return
    if parts.hostname is None:
        raise ValueError("it names no host")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("its port is not a number from 1 to 65535")
    if parts.path not in ("", "/") and not _DATABASE.fullmatch(parts.path[1:]):
        raise ValueError("only the number of a database may follow the host")


def _check_file(path: str, *, is_authority: bool) -> None:
    # redis-py would open the file only when it connects, and Redis would seem to be away.
    try:
        if is_authority:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        else:
            Path(path).open("rb").close()
    except ssl.SSLError:
        raise ValueError(f"{path} holds no certificate in PEM form") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def safe_url(url: str) -> str:
    """Return the URL without its credentials, for messages and logs.

    A malformed URL may have credentials anywhere, so only parts that can't be secret are kept.
    """
    scheme, sign, rest = url.partition("://")
    match = _ADDRESS.fullmatch(rest.rpartition("@")[2].partition("?")[0])
    if not sign or not _SCHEME.fullmatch(scheme):
        return "..."
    if match is None:
        return f"{scheme}://..."
    return f"{scheme}://{match[0]}"


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translate redis-py's exceptions.

    Raises:
        BrokerUnavailable: no connection, no answer in time, or a temporary error.
        BrokerUntrusted: the certificate of Redis is not trusted.
        AccessDenied: the user lacks a permission.
        BrokerUnsuitable: wrong credentials, or an error with one of `_PERMANENT_CODES`.
    """
    try:
        yield
    except exceptions.NoPermissionError as error:
        raise AccessDenied(f"Redis refuses us: {error}") from None
    except _REFUSALS as error:
        raise BrokerUnsuitable(f"Redis refuses us: {error}") from None
    except (exceptions.BusyLoadingError, exceptions.ResponseError) as error:
        if error_code(error) in _PERMANENT_CODES:
            raise BrokerUnsuitable(f"Redis can't do that: {error}") from None
        raise BrokerUnavailable(f"no service from Redis: {error}") from None
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        # redis-py wraps errors from logging in.
        if isinstance(error.__cause__, exceptions.NoPermissionError):
            raise AccessDenied(f"Redis refuses us: {error}") from None
        if isinstance(error.__cause__, _REFUSALS):
            raise BrokerUnsuitable(f"Redis refuses us: {error}") from None
        # redis-py raises its own error while handling the SSL error.
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            raise BrokerUntrusted(
                f"the certificate of Redis is not trusted: {error.__context__.verify_message};"
                " for a private CA, add ?ssl_ca_certs=FILE to the URL"
            ) from None
        raise BrokerUnavailable(f"no answer from Redis: {error}") from None


def error_code(error: exceptions.RedisError) -> str:
    """Return the code at the start of an error reply, such as `OOM`.

    redis-py removes the codes that it knows from the text and stores them in `status_code`.
    """
    return error.status_code or str(error).partition(" ")[0]


def name_denied_command(reply: Any, command: Sequence[Any]) -> Any:
    """Return a reply, with the command and its keys added if it is a permission error.

    Redis names a command that is not permitted, but not the key or channel. For a script,
    the refused key or channel may be one that it takes from its arguments.
    """
    if not isinstance(reply, exceptions.ResponseError):
        return reply
    text = str(reply).removeprefix("NOPERM ")
    if _DENIED_IN_SCRIPT in text:
        text = text.partition(_DENIED_IN_SCRIPT)[2].rpartition(" script: ")[0]
    elif not isinstance(reply, exceptions.NoPermissionError):
        return reply
    return exceptions.NoPermissionError(f"{text} ({_describe(command)})")


def _describe(command: Sequence[Any]) -> str:
    """Describe a command by its name and its keys or channels, without values and script text."""
    name, *rest = (
        word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
        for word in command
    )
    if name.startswith("EVAL"):
        rest = rest[2 : 2 + int(rest[1])]
    elif name.startswith("SCRIPT"):
        rest = []
    elif name != "SUBSCRIBE":
        rest = rest[:1]
    more = ["…"] if len(rest) > _NAMES_SHOWN else []
    return " ".join([name, *rest[:_NAMES_SHOWN], *more])


async def execute(pipeline: Pipeline) -> list[Any]:
    """Execute a pipeline and return its replies. The first error among them is raised."""
    with translated_errors():
        replies = await read_replies(pipeline)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
    return replies


async def read_replies(pipeline: Pipeline) -> list[Any]:
    """Execute a pipeline and return its replies, including errors. Raises redis-py's exceptions."""
    commands = [words for words, _ in pipeline.command_stack]
    replies = await pipeline.execute(raise_on_error=False)
    return [name_denied_command(*each) for each in zip(replies, commands, strict=True)]


async def check_version(client: Redis) -> None:
    """Check that the server is at least Redis 7 or Valkey 8, and raise BrokerUnsuitable if not."""
    with translated_errors():
        info = await client.info("server")
    valkey = info.get("valkey_version")
    name, version, oldest = (
        ("Valkey", valkey, _OLDEST_VALKEY)
        if valkey
        else ("Redis", info.get("redis_version", "0"), _OLDEST_REDIS)
    )
    if int(str(version).partition(".")[0]) < oldest:
        raise BrokerUnsuitable(f"{name} {version} is too old; Redis 7 or Valkey 8 is needed")
