"""Authentication: check credentials and return the grant that they give."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from feed.access.checks import CheckQueue, Rank
from feed.access.grant import OPEN_GRANT, Grant, Proof
from feed.access.jwks import RemoteKeys
from feed.access.keyfile import KeyFile
from feed.access.keyreader import read_again
from feed.access.keyring import KeyRing
from feed.access.secrets import SecretChecker, key_id_of
from feed.access.tokens import VerifyingKey, read_key, verify_token
from feed.access.tokens import key_id_of as token_key_id_of
from tickcast.settings import Settings
from tickcast.wire.actions import BearerToken, Credentials, KeyAndSecret
from tickcast.wire.errors import AuthFailed, InvalidSettings, TryAgain

CREDENTIAL_MAX: Final = 8192
"""The maximum length of a key, secret or token, in characters."""
_KEY_ID: Final = "apca-api-key-id"
_SECRET: Final = "apca-api-secret-key"  # noqa: S105
_AGAIN_S: Final = 5.0
"""The delay before reading the file of keys again, after the reading process could not run."""
_LOOKS_S: Final = 0.5
"""The interval between checks of the file of keys for changes."""
_FETCHING_MAX: Final = 100
"""The number of tokens that may wait for their issuer's keys at the same time."""
logger = logging.getLogger("tickcast.access")


class Authenticator:
    """Authenticates clients by API key or token.

    Raises:
        InvalidSettings: a file that the settings name can't be read, or has no usable content.
    """

    def __init__(self, settings: Settings) -> None:
        self._file = KeyFile(Path(settings.auth)) if settings.auth else None
        self._ring = self._file.read() if self._file else KeyRing()
        self._token_key = _read_token_key(settings.jwt_key) if settings.jwt_key else None
        self._remote = RemoteKeys(settings.jwks_url) if settings.jwks_url else None
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        self._checker = SecretChecker()
        # One thread for all checks, so that a flood of wrong secrets uses one core, not all.
        self._thread = ThreadPoolExecutor(1, "tickcast-access")
        # A separate thread, so that an unresponsive issuer does not delay clients with API keys.
        self._fetching = ThreadPoolExecutor(1, "tickcast-jwks")
        self._checks = CheckQueue(self._thread)
        self._waiting = 0

    @property
    def asks(self) -> bool:
        """Whether clients need credentials at all."""
        return bool(self._file or self._token_key or self._remote)

    async def admit(self, credentials: Credentials, address: str = "unknown") -> Grant:
        """Check credentials and return the client's grant.

        Args:
            address: the address that they come from.

        Raises:
            AuthFailed: the credentials are not valid.
            TryAgain: the credentials could not be checked now.
        """
        if not self.asks:
            return OPEN_GRANT
        if credentials.length > CREDENTIAL_MAX:
            raise AuthFailed(f"credentials have at most {CREDENTIAL_MAX} characters")
        if not isinstance(credentials, BearerToken):
            return await self._admit_key(credentials.key, credentials.secret, address)
        key_id = key_id_of(credentials.text)
        if key_id is not None:
            return await self._admit_key(key_id, credentials.text, address)
        return await self._admit_token(credentials.text)

    def renewed(self, grant: Grant) -> Grant | None:
        """The current version of an earlier grant; None if it has expired or was revoked."""
        if grant.proof is Proof.KEY:
            return self._ring.grant(grant.subject, time.time())
        expired = grant.expires_s is not None and grant.expires_s <= time.time()
        return None if expired else grant

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Reload the file of keys whenever it changes. If it is broken, keep the current keys."""
        while self._file is not None:
            await asyncio.sleep(_LOOKS_S)
            if not self._file.has_changed():
                continue
            seen = self._file.look()
            try:
                self._ring = await read_again(self._file, self._ring)
            except InvalidSettings as error:
                logger.error("the keys stay as they were: %s", error)
                self._file.note(seen)
                continue
            except (OSError, TimeoutError) as error:
                logger.error("the keys stay as they were, trying again: %s", error)
                await asyncio.sleep(_AGAIN_S)
                continue
            self._checker.keep_only(self._ring.hashes)
            logger.info("read %s again: %d keys", self._file.path, len(self._ring.keys))
            on_change()

    def close(self) -> None:
        """Shut the threads down."""
        for thread in (self._thread, self._fetching):
            thread.shutdown(wait=False, cancel_futures=True)

    async def _admit_key(self, key_id: str, secret: str, address: str) -> Grant:
        hashed = self._ring.hash_of(key_id, time.time())
        if self._checker.is_known(secret, hashed):
            self._checks.note(address, is_right=True)
        else:
            await self._check(secret, hashed, address)
        grant = self._ring.grant(key_id, time.time())
        if grant is None:
            raise AuthFailed("no such key, or not its secret")
        return grant

    async def _check(self, secret: str, hashed: str | None, address: str) -> None:
        # Refusing an unknown key takes as long as a check. It waits behind the existing keys.
        rank = Rank.FAILED if hashed is None else self._checks.rank_of(address)
        is_right = await self._checks.run(
            (secret, hashed), lambda: self._checker.check(secret, hashed), address, rank
        )
        self._checks.note(address, is_right=is_right)
        if not is_right:
            raise AuthFailed("no such key, or not its secret")

    async def _admit_token(self, token: str) -> Grant:
        key = self._token_key
        if self._remote is not None:
            remote, kid = self._remote, token_key_id_of(token)
            key = remote.known(kid) or key
            if key is None:
                key = await self._fetch(remote, kid)
        if key is None:
            raise AuthFailed("no such key, or not its secret")
        return verify_token(token, key, audience=self._audience, issuer=self._issuer)

    async def _fetch(self, remote: RemoteKeys, kid: str | None) -> VerifyingKey:
        if self._waiting >= _FETCHING_MAX:
            raise TryAgain
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._fetching, remote.fetch, kid
            )
        finally:
            self._waiting -= 1


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
