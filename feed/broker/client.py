"""Connections to Redis: one way to make them, one translation of what can go wrong."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from feed.errors import BrokerUnavailable, BrokerUnsuitable, BrokerUntrusted, InvalidSettings

CONNECT_TIMEOUT_S: Final = 3.0
COMMAND_TIMEOUT_S: Final = 5.0
SCHEMES: Final = ("redis", "rediss", "unix")
_OLDEST_REDIS: Final = 7
_OLDEST_VALKEY: Final = 8
_REFUSALS: Final = (exceptions.AuthenticationError, exceptions.NoPermissionError)
_PASSING: Final = (
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,  # also MASTERDOWN
)
"""What it answers while it starts or while another one takes its place."""


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
        pool = BlockingConnectionPool.from_url(
            url,
            protocol=2,
            max_connections=max_connections,
            timeout=COMMAND_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=COMMAND_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            client_name="tickcast",
        )
        if ca := pool.connection_kwargs.get("ssl_ca_certs"):
            _check_certificates(ca)
        return Redis.from_pool(pool)
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
        BrokerUnavailable: no connection, no answer in time, or not in charge just now.
        BrokerUntrusted: its certificate is not trusted.
        BrokerUnsuitable: it answered that we may not.
    """
    try:
        yield
    except _REFUSALS as error:
        raise BrokerUnsuitable(f"Redis refuses us: {error}") from None
    except _PASSING as error:
        raise BrokerUnavailable(f"no service from Redis: {error}") from None
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        # What is wrong with a log-in while connecting comes wrapped.
        if isinstance(error.__cause__, _REFUSALS):
            raise BrokerUnsuitable(f"Redis refuses us: {error}") from None
        # redis-py raises its own while it handles this one.
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            raise BrokerUntrusted(
                f"the certificate of Redis is not trusted: {error.__context__.verify_message};"
                " a CA of your own is named in the URL, with ?ssl_ca_certs=FILE"
            ) from None
        raise BrokerUnavailable(f"no answer from Redis: {error}") from None
    except exceptions.ResponseError as error:
        raise BrokerUnsuitable(f"Redis can't do that: {error}") from None


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
