"""Authentication: check credentials and return the grant that they give.

Checking a secret takes about 20 ms of CPU time. A flood of wrong secrets must not keep out clients
with a valid one, so the clients that are likely to have a valid secret are served first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from feed.access.entitlements import OPEN_GRANT, Grant, Proof
from feed.access.key_file import KeyFile
from feed.access.keys import Key, SecretChecker, key_id_of
from feed.access.tokens import RemoteKeys, VerifyingKey, read_key, token_key_id_of, verify_token
from tickcast.settings import Settings
from tickcast.wire.actions import BearerToken, Credentials, KeyAndSecret
from tickcast.wire.errors import AuthFailed, InvalidSettings, TryAgain

# The maximum length of a key, secret or token, in characters.
CREDENTIAL_MAX: Final = 8192
_KEY_ID: Final = "apca-api-key-id"
_SECRET: Final = "apca-api-secret-key"  # noqa: S105
_WRONG_KEY: Final = "no such key, or not its secret"

# The interval between checks of the file of keys for changes.
_RELOAD_INTERVAL_S: Final = 0.5
# The delay before reading that file again, after the reading process could not run.
_AGAIN_S: Final = 5.0
# The number of tokens that may wait for their issuer's keys at the same time.
_FETCHING_MAX: Final = 100

# How long a check of a secret may wait, and how many of one address.
_WAIT_S: Final = 3.0
_PER_ADDRESS_MAX: Final = 8
# How long, and of how many addresses, the queue remembers right and wrong secrets.
_FAILED_FOR_S: Final = 60.0
_ADDRESSES_MAX: Final = 10_000

Check = Callable[[], bool]
Value = TypeVar("Value")

logger = logging.getLogger("tickcast.access")


class Authenticator:
    """Authenticates clients by API key or token.

    Raises:
        InvalidSettings: a file that the settings name can't be read, or has no usable content.
    """

    def __init__(self, settings: Settings) -> None:
        self._file = KeyFile(Path(settings.auth)) if settings.auth else None
        self._keys = self._file.load() if self._file else {}
        self._token_key = _read_token_key(settings.jwt_key) if settings.jwt_key else None
        self._remote = RemoteKeys(settings.jwks_url) if settings.jwks_url else None
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        self._checker = SecretChecker()
        # One thread for all checks, so that a flood of wrong secrets uses one core, not all.
        self._check_thread = ThreadPoolExecutor(1, "tickcast-access")
        self._checks = CheckQueue(self._check_thread)
        # A separate thread, so that an unresponsive issuer does not delay clients with API keys.
        self._fetch_thread = ThreadPoolExecutor(1, "tickcast-jwks")
        self._fetching = 0

    @property
    def is_required(self) -> bool:
        """Whether clients need credentials at all."""
        return bool(self._file or self._token_key or self._remote)

    async def authenticate(self, credentials: Credentials, address: str = "unknown") -> Grant:
        """Check credentials and return the client's grant.

        Raises:
            AuthFailed: the credentials are not valid.
            TryAgain: the credentials could not be checked now.
        """
        if not self.is_required:
            return OPEN_GRANT
        if credentials.length > CREDENTIAL_MAX:
            raise AuthFailed(f"credentials have at most {CREDENTIAL_MAX} characters")
        if not isinstance(credentials, BearerToken):
            return await self._check_key(credentials.key, credentials.secret, address)
        key_id = key_id_of(credentials.text)
        if key_id is not None:
            return await self._check_key(key_id, credentials.text, address)
        return await self._check_token(credentials.text)

    def renewed(self, grant: Grant) -> Grant | None:
        """The current version of an earlier grant; None if it has expired or was revoked."""
        if grant.proof is Proof.KEY:
            key = self._valid_key(grant.subject)
            return key.grant(grant.subject) if key is not None else None
        expired = grant.expires_s is not None and grant.expires_s <= time.time()
        return None if expired else grant

    async def watch_keys(self, on_change: Callable[[], None]) -> None:
        """Reload the file of keys whenever it changes. If it is broken, keep the current keys."""
        while self._file is not None:
            await asyncio.sleep(_RELOAD_INTERVAL_S)
            try:
                keys = await self._file.reload(self._keys)
            except InvalidSettings as error:
                logger.error("the keys stay as they were: %s", error)
            except (OSError, TimeoutError) as error:
                logger.error("the keys stay as they were, trying again: %s", error)
                await asyncio.sleep(_AGAIN_S)
            else:
                if keys is not None:
                    self._keys = keys
                    self._checker.keep_only(k.hash for k in keys.values() if k.revoked is None)
                    logger.info("read %s again: %d keys", self._file.path, len(keys))
                    on_change()

    def shut_down(self) -> None:
        """Shut the threads down."""
        for thread in (self._check_thread, self._fetch_thread):
            thread.shutdown(wait=False, cancel_futures=True)

    def _valid_key(self, key_id: str) -> Key | None:
        key = self._keys.get(key_id)
        return key if key is not None and key.is_valid(time.time()) else None

    async def _check_key(self, key_id: str, secret: str, address: str) -> Grant:
        key = self._valid_key(key_id)
        hashed = key.hash if key is not None else None
        is_right = self._checker.is_cached(secret, hashed)
        if not is_right:
            # Refusing an unknown key takes as long as a check. It waits behind the existing keys.
            rank = Rank.FAILED if key is None else self._checks.rank_of(address)
            is_right = await self._checks.run(
                (secret, hashed), lambda: self._checker.check(secret, hashed), address, rank
            )
        self._checks.note_result(address, is_right=is_right)
        key = self._valid_key(key_id)  # It may have been revoked meanwhile.
        if not is_right or key is None:
            raise AuthFailed(_WRONG_KEY)
        return key.grant(key_id)

    async def _check_token(self, token: str) -> Grant:
        key = self._token_key
        if self._remote is not None:
            kid = token_key_id_of(token)
            key = self._remote.cached(kid) or key or await self._fetch(self._remote, kid)
        if key is None:
            raise AuthFailed(_WRONG_KEY)
        return verify_token(token, key, audience=self._audience, issuer=self._issuer)

    async def _fetch(self, remote: RemoteKeys, kid: str | None) -> VerifyingKey:
        if self._fetching >= _FETCHING_MAX:
            raise TryAgain
        self._fetching += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._fetch_thread, remote.fetch, kid)
        finally:
            self._fetching -= 1


class Rank(IntEnum):
    """The priority of an address, by how likely its secret is valid. Lower numbers come first."""

    # It has presented a valid secret before.
    TRUSTED = 0
    UNKNOWN = 1
    # It has recently presented a wrong secret, or it names a key that does not exist.
    FAILED = 2


# The number of checks that may wait, counting those of the same rank and of lower priority.
_WAITING_MAX: Final = {Rank.TRUSTED: 100, Rank.UNKNOWN: 80, Rank.FAILED: 20}


class CheckQueue:
    """Runs checks one at a time in a thread. Equal checks that are waiting share one run."""

    def __init__(self, thread: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._thread = thread
        self._clock = clock
        self._is_running = False
        self._queues: dict[Rank, deque[tuple[Check, asyncio.Future[bool]]]] = {
            rank: deque() for rank in Rank
        }
        self._pending: dict[Hashable, asyncio.Future[bool]] = {}
        self._by_address: Counter[str] = Counter()
        self._failed: dict[str, float] = {}
        self._trusted: dict[str, None] = {}

    def rank_of(self, address: str) -> Rank:
        """The rank of an address, based on its recent checks."""
        if self._failed.get(address, 0.0) > self._clock():
            return Rank.FAILED
        return Rank.TRUSTED if address in self._trusted else Rank.UNKNOWN

    def note_result(self, address: str, *, is_right: bool) -> None:
        """Record that an address presented a valid or a wrong secret."""
        if is_right:
            self._failed.pop(address, None)
            _remember(self._trusted, address, None)
        else:
            self._trusted.pop(address, None)
            _remember(self._failed, address, self._clock() + _FAILED_FOR_S)

    async def run(self, key: Hashable, check: Check, address: str, rank: Rank) -> bool:
        """Queue a check and wait for its result.

        Args:
            key: identifies the check; equal checks have equal keys.

        Raises:
            TryAgain: too many checks are waiting, or this one has waited too long.
        """
        future = self._pending.get(key)
        if future is not None:
            return await self._wait_for(future)
        waiting = sum(len(self._queues[each]) for each in Rank if each >= rank)
        if waiting >= _WAITING_MAX[rank] or self._by_address[address] >= _PER_ADDRESS_MAX:
            raise TryAgain
        future = asyncio.get_running_loop().create_future()
        self._pending[key] = future
        self._by_address[address] += 1
        future.add_done_callback(partial(self._remove_pending, key, address))
        self._queues[rank].append((check, future))
        self._run_next()
        return await self._wait_for(future)

    async def _wait_for(self, future: asyncio.Future[bool]) -> bool:
        try:
            async with asyncio.timeout(_WAIT_S):
                return await asyncio.shield(future)
        except TimeoutError:
            raise TryAgain from None

    def _remove_pending(self, key: Hashable, address: str, future: asyncio.Future[bool]) -> None:
        del self._pending[key]
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _run_next(self) -> None:
        queue = next((self._queues[rank] for rank in Rank if self._queues[rank]), None)
        if self._is_running or queue is None:
            return
        check, future = queue.popleft()
        self._is_running = True
        running = asyncio.get_running_loop().run_in_executor(self._thread, check)
        running.add_done_callback(partial(self._finish, future))

    def _finish(self, future: asyncio.Future[bool], done: asyncio.Future[bool]) -> None:
        self._is_running = False
        if done.cancelled():
            future.cancel()
            return
        if (error := done.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())
        self._run_next()


def _remember(table: dict[str, Value], address: str, value: Value) -> None:
    """Add an entry at the end of a table, dropping the oldest one if the table is full."""
    table.pop(address, None)
    if len(table) >= _ADDRESSES_MAX:
        del table[next(iter(table))]
    table[address] = value


def _read_token_key(path: str) -> VerifyingKey:
    try:
        return read_key(Path(path).read_bytes())
    except OSError as error:
        raise InvalidSettings(f"jwt_key: {path}: {error.strerror}") from None
    except InvalidSettings as error:
        raise InvalidSettings(f"jwt_key: {path}: {error}") from None


def credentials_in(headers: Sequence[tuple[bytes, bytes]]) -> Credentials | None:
    """Find the credentials in the headers of a request. Returns None if there are none.

    Args:
        headers: lower-case names and values, as in an ASGI scope.

    Raises:
        AuthFailed: the headers contain incomplete, duplicate or conflicting credentials.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        text = name.decode("latin-1")
        if text in ("authorization", _KEY_ID, _SECRET):
            if text in found:
                raise AuthFailed(f"{text} came twice")
            if len(value) > CREDENTIAL_MAX:
                raise AuthFailed(f"{text} is too long")
            found[text] = value.decode("latin-1").strip()
    if not found:
        return None
    if found.keys() == {_KEY_ID, _SECRET}:
        return KeyAndSecret(found[_KEY_ID], found[_SECRET])
    if found.keys() == {"authorization"}:
        scheme, _, text = found["authorization"].partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise AuthFailed("Authorization takes Bearer and a token or a secret")
        return BearerToken(text.strip())
    raise AuthFailed(
        "credentials are Authorization alone, or APCA-API-KEY-ID with APCA-API-SECRET-KEY"
    )
