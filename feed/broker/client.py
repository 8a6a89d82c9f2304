"""Connections to Redis: one way to make them, one translation of what can go wrong."""

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

from feed.broker import keys
from feed.errors import (
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
"""Error codes that repeating a command does not change.

Every other code may pass: LOADING, READONLY, MASTERDOWN, CLUSTERDOWN, OOM, NOREPLICAS, MISCONF,
BUSY, TRYAGAIN and codes of later versions. A producer that ends over one of those loses ticks; one
that keeps trying over a permanent one only says so. A script that gets such an answer has written
nothing: Redis checks before a script's first write.
"""
_PARAMETERS: Final = frozenset(
    {
        *("db", "username", "password", "client_name", "max_connections", "timeout"),
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval"),
    }
) | (
    _TLS_PARAMETERS := frozenset(
        {
            *("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile"),
            *("ssl_password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers"),
            "ssl_min_version",
        }
    )
)
"""What may stand behind the ? of a URL. redis-py takes more, such as `protocol`, which is not ours
to leave to a URL: the readers of replies rely on it."""
_DATABASE: Final = re.compile(r"[0-9]{1,9}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SAFE: Final = re.compile(
    r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?(?:/\d{0,9})?|/[^@?#]*", re.ASCII
)
"""A host with a port and a database, or the path of a socket."""
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+-]{0,19}", re.ASCII)
_SHOWN: Final = 40
_DENIED_IN_SCRIPT: Final = "ACL failure in script: "
_NAMES_TOLD: Final = 4


class _Client(Redis):
    """Says which command was refused for want of a right."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except exceptions.ResponseError as error:
            raise named(error, args) from None


class _Pool(BlockingConnectionPool):
    """Loses no connection when whoever gives it back is cancelled meanwhile."""

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
    """A client for the Redis at `url`; it connects when it is first used.

    It never repeats a command by itself: whoever sent it knows whether that is safe. When all its
    connections are busy, a command waits for one.

    Raises:
        InvalidSettings: the URL is malformed, or a file that it names can't be used. The text
            holds no credentials.
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
            driver_info=None,  # Else it tells its own name too, which takes a right.
        )
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if path := pool.connection_kwargs.get(name):
                _check_file(path, is_authority=name == "ssl_ca_certs")
        # redis-py looks at most parameters only when it connects.
        pool.make_connection()  # type: ignore[no-untyped-call]
        return _Client.from_pool(pool)
    except (ValueError, TypeError, exceptions.RedisError) as error:
        raise InvalidSettings(f"redis_url: {safe_url(url)!a}: {error}") from None


def database_of(client: Redis) -> int:
    """The number of the database that a client uses."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


def channel_of(client: Redis, channel: str) -> str:
    """What a channel is called in the database that a client uses; see `keys.channel_in`."""
    return keys.channel_in(database_of(client), channel)


def _check_url(url: str) -> None:
    """Refuse what redis-py would ignore, misread, or only stumble over when it connects.

    Raises:
        ValueError: what is wrong, in words that hold neither user nor password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.hostname
        parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        # Its words may quote any part of the URL.
        raise ValueError("the host or what is behind the ? is malformed") from None
    if parts.scheme not in SCHEMES:
        raise ValueError("no redis://, rediss:// or unix:// URL")
    if _BAD_ESCAPE.search(url):
        raise ValueError("a % is not followed by two hexadecimal digits; write it as %25")
    if not url.isprintable() or " " in url:
        raise ValueError("a blank or a control character is not written as %20 or the like")
    behind = f"{parts.path}{parts.query}{parts.fragment}"
    if "@" in behind and parts.scheme != "unix":
        raise ValueError("/, ?, # and @ in a password are written as %2F, %3F, %23 and %40")
    if parts.fragment or url.endswith("#"):
        raise ValueError("it has no part that begins with #")
    _check_place(parts)
    for name, value in parameters:
        if name not in _PARAMETERS or (name in _TLS_PARAMETERS and parts.scheme != "rediss"):
            known = _PARAMETERS if parts.scheme == "rediss" else _PARAMETERS - _TLS_PARAMETERS
            (nearest,) = get_close_matches(name, sorted(known), n=1, cutoff=0)
            raise ValueError(f"unknown parameter {name[:_SHOWN]!a}; the nearest is {nearest}")
        if not value:
            raise ValueError(f"the parameter {name} is empty")
        if name == "db" and not _DATABASE.fullmatch(value):
            raise ValueError("db is not the number of a database")


def _check_place(parts: SplitResult) -> None:
    """Refuse a URL that does not say where; Redis's own default is no better than a guess."""
    if parts.scheme == "unix":
        if len(parts.path) < 2 or not parts.path.startswith("/") or parts.hostname:
            raise ValueError("it is unix:///PATH of a socket, with three slashes")
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
        raise ValueError("behind the host stands nothing but the number of a database")


def _check_file(path: str, *, is_authority: bool) -> None:
    # redis-py would look when it connects, and it would seem that Redis were away.
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
    """The URL without its credentials, for messages and logs.

    In a malformed one they may stand anywhere: only what is certain to be no secret is shown.
    """
    scheme, sign, rest = url.partition("://")
    match = _SAFE.fullmatch(rest.rpartition("@")[2].partition("?")[0])
    if not sign or not _SCHEME.fullmatch(scheme):
        return "..."
    if match is None:
        return f"{scheme}://..."
    return f"{scheme}://{match[0]}"


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn redis-py's exceptions into ours.

    Raises:
        BrokerUnavailable: no connection, no answer in time, or an error that may pass.
        BrokerUntrusted: its certificate is not trusted.
        AccessDenied: a permission is missing.
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
        # What is wrong with a log-in while connecting comes wrapped.
        if isinstance(error.__cause__, exceptions.NoPermissionError):
            raise AccessDenied(f"Redis refuses us: {error}") from None
        if isinstance(error.__cause__, _REFUSALS):
            raise BrokerUnsuitable(f"Redis refuses us: {error}") from None
        # redis-py raises its own while it handles this one.
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            raise BrokerUntrusted(
                f"the certificate of Redis is not trusted: {error.__context__.verify_message};"
                " a CA of your own is named in the URL, with ?ssl_ca_certs=FILE"
            ) from None
        raise BrokerUnavailable(f"no answer from Redis: {error}") from None


def error_code(error: exceptions.RedisError) -> str:
    """The code that an error reply begins with, such as `OOM`.

    redis-py removes a code that it knows from the text and keeps it in `status_code`.
    """
    return error.status_code or str(error).partition(" ")[0]


def named(error: Any, command: Sequence[Any]) -> Any:
    """What a command was answered; a want of rights with the command and its keys.

    Redis itself names a command that may not be used, but neither the key nor the channel. In a
    script it may be one that the script takes from its arguments.
    """
    if not isinstance(error, exceptions.ResponseError):
        return error
    words = str(error).removeprefix("NOPERM ")
    if _DENIED_IN_SCRIPT in words:
        words = words.partition(_DENIED_IN_SCRIPT)[2].rpartition(" script: ")[0]
    elif not isinstance(error, exceptions.NoPermissionError):
        return error
    return exceptions.NoPermissionError(f"{words} ({_told(command)})")


def _told(command: Sequence[Any]) -> str:
    """A command's name, and its keys or its channels; no values and no text of scripts."""
    name, *rest = (_text(word) for word in command)
    if name.startswith("EVAL"):
        rest = rest[2 : 2 + int(rest[1])]
    elif name.startswith("SCRIPT"):
        rest = []
    elif name != "SUBSCRIBE":
        rest = rest[:1]
    more = ["…"] if len(rest) > _NAMES_TOLD else []
    return " ".join([name, *rest[:_NAMES_TOLD], *more])


def _text(word: object) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)


async def execute(pipeline: Pipeline) -> list[Any]:
    """The replies to a pipeline's commands.

    Raises:
        BrokerUnavailable, BrokerUnsuitable: as `translated_errors` says, for the first that fails.
    """
    with translated_errors():
        replies = await replies_of(pipeline)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
    return replies


async def replies_of(pipeline: Pipeline) -> list[Any]:
    """The same with the errors among them. Raises what redis-py raises."""
    commands = [words for words, _ in pipeline.command_stack]
    replies = await pipeline.execute(raise_on_error=False)
    return [named(reply, words) for reply, words in zip(replies, commands, strict=True)]


async def check_version(client: Redis) -> None:
    """Hold the server to Redis 7 or Valkey 8.

    Raises:
        BrokerUnavailable, BrokerUnsuitable: as `translated_errors` says, or it is too old.
    """
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
