"""Connections to Redis: one way to make them, one translation of what can go wrong."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

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
        InvalidSettings: the URL is not one of redis://, rediss:// or unix://, or the file of
            certificates that it names can't be used.
    """
    try:
        if urlsplit(url).scheme not in SCHEMES:
            raise ValueError("no redis://, rediss:// or unix:// URL")
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
        if ca := pool.connection_kwargs.get("ssl_ca_certs"):
            _check_certificates(ca)
        return _Client.from_pool(pool)
    except (ValueError, TypeError) as error:
        raise InvalidSettings(f"redis_url: {safe_url(url)!a}: {error}") from None


def _check_certificates(path: str) -> None:
    # redis-py would look when it connects, and it would seem that Redis were away.
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path} holds no certificate in PEM form") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def safe_url(url: str) -> str:
    """The URL without its credentials, for messages and logs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


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
