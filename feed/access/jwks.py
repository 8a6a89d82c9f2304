"""The public keys of a token issuer, fetched from its JWKS URL (RFC 7517)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import (
    BaseHandler,
    HTTPRedirectHandler,
    ProxyHandler,
    build_opener,
    getproxies,
    proxy_bypass,
)

import jwt
import msgspec

from feed.access.tokens import VerifyingKey, for_public_key
from tickcast.addresses import is_loopback
from tickcast.client.connection import describe_proxy
from tickcast.wire.errors import AuthFailed, InvalidSettings

_FETCH_TIMEOUT_S: Final = 5.0
_KEPT_S: Final = 3600.0
_AGAIN_S: Final = 10.0
"""The minimum time between fetches, which tokens with made-up key ids could otherwise trigger."""
_SIZE_MAX: Final = 1024 * 1024

logger = logging.getLogger("tickcast.access")


class RemoteKeys:
    """An issuer's keys by id. Fetching blocks, so call `fetch` in a thread, one call at a time.

    Raises:
        InvalidSettings: the URL is not https (or http on this machine).
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(url)
        local = parts.scheme == "http" and is_loopback(parts.hostname or "")
        if not (parts.scheme == "https" and parts.hostname) and not local:
            raise InvalidSettings(f"jwks_url: {url!a} is no https:// URL")
        self._url = url
        # Redirects could lead from https to http. A proxy can't reach our loopback address.
        handlers: list[BaseHandler] = [_NoRedirects()]
        if is_loopback(parts.hostname or ""):
            handlers.append(ProxyHandler({}))
        self._opener = build_opener(*handlers)
        self._clock = clock
        self._keys: dict[str | None, VerifyingKey] = {}
        self._fetched_s = self._tried_s = -_KEPT_S

    def known(self, kid: str | None) -> VerifyingKey | None:
        """A key from the cache; None if the keys must be fetched."""
        if self._clock() - self._fetched_s > _KEPT_S:
            return None
        return self._find(kid)

    def fetch(self, kid: str | None) -> VerifyingKey:
        """Return a key. If it is not known, fetch all keys, at most once in `_AGAIN_S`.

        Raises:
            AuthFailed: there is no key with that id.
        """
        known = self.known(kid)
        if known is None and self._clock() - self._tried_s >= _AGAIN_S:
            self._tried_s = self._clock()
            self._fetch()
        # If the issuer can't be reached, outdated keys are better than none.
        if known is None and (known := self._find(kid)) is None:
            raise AuthFailed("the token is signed with a key that its issuer does not publish")
        return known

    def _fetch(self) -> None:
        try:
            with self._opener.open(self._url, timeout=_FETCH_TIMEOUT_S) as response:
                data = response.read(_SIZE_MAX)
            published = jwt.PyJWKSet.from_dict(msgspec.json.decode(data, type=dict[str, Any])).keys
        except Exception as error:
            # The issuer may answer anything, such as a truncated body or keys of another form.
            proxy = describe_proxy(self._proxy())
            logger.error("can't fetch the keys of tokens%s: %s", proxy, error)
            return
        keys: dict[str | None, VerifyingKey] = {}
        for each in published:
            if each.public_key_use in (None, "sig") and (key := _usable(each.key)):
                keys[each.key_id] = key
        self._keys, self._fetched_s = keys, self._clock()

    def _proxy(self) -> str | None:
        """The proxy that the keys are fetched through, if any."""
        parts = urlsplit(self._url)
        if is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc):
            return None
        return getproxies().get(parts.scheme)

    def _find(self, kid: str | None) -> VerifyingKey | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)


def _usable(key: Any) -> VerifyingKey | None:
    try:
        return for_public_key(key)
    except InvalidSettings:
        return None


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """Treat every redirect as an error."""
