"""JSON Web Tokens: verify them, read their rights, and fetch their issuer's keys.

The key determines the algorithm, never the token (RFC 8725, section 3.1).
Source: RFC 7519 (tokens), RFC 7517 (key sets).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
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
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from msgspec import Struct

from feed.access.entitlements import Entitlements, Grant, Proof
from tickcast.client.connection import describe_proxy
from tickcast.wire.addresses import is_loopback
from tickcast.wire.errors import AuthFailed, InvalidSettings

SECRET_MIN_BYTES: Final = 32
_RSA_MIN_BITS: Final = 2048
_SUBJECT_MAX: Final = 128
_FETCH_TIMEOUT_S: Final = 5.0
_KEPT_S: Final = 3600.0
# The minimum time between fetches, which tokens with made-up key ids could otherwise trigger.
_AGAIN_S: Final = 10.0
_SIZE_MAX: Final = 1024 * 1024
_CLAIMS: Final = ("feeds", "channels", "symbols")
_BY_CURVE: Final[Mapping[type, str]] = {SECP256R1: "ES256", SECP384R1: "ES384", SECP521R1: "ES512"}

logger = logging.getLogger("tickcast.access")


class VerifyingKey(Struct, frozen=True):
    """A key for verifying tokens, and the algorithms that it may be used with."""

    key: Any
    algorithms: tuple[str, ...]

    def __repr__(self) -> str:
        return f"VerifyingKey({', '.join(self.algorithms)})"


def read_key(content: bytes) -> VerifyingKey:
    """Parse the key in a file: a public key or certificate in PEM, or a shared secret.

    Raises InvalidSettings if the content is neither, or the key is too weak.
    """
    content = content.strip()
    if b"-----BEGIN" not in content:
        if len(content) < SECRET_MIN_BYTES:
            raise InvalidSettings(f"a shared secret has at least {SECRET_MIN_BYTES} bytes")
        return VerifyingKey(content, ("HS256",))
    if b"PRIVATE KEY-----" in content:
        raise InvalidSettings("that is a private key; the server needs the public one")
    try:
        if b"-----BEGIN CERTIFICATE-----" in content:
            return for_public_key(load_pem_x509_certificate(content).public_key())
        return for_public_key(load_pem_public_key(content))
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidSettings("no public key in PEM") from None


def for_public_key(key: object) -> VerifyingKey:
    """Determine the algorithms of a public key.

    Raises:
        InvalidSettings: the key is not RSA from 2048 bits, P-256, P-384, P-521 or Ed25519.
    """
    if isinstance(key, RSAPublicKey) and key.key_size >= _RSA_MIN_BITS:
        return VerifyingKey(key, ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
    if isinstance(key, EllipticCurvePublicKey) and type(key.curve) in _BY_CURVE:
        return VerifyingKey(key, (_BY_CURVE[type(key.curve)],))
    if isinstance(key, Ed25519PublicKey):
        return VerifyingKey(key, ("EdDSA",))
    raise InvalidSettings("tokens are signed with RSA from 2048 bits, P-256 to P-521, or Ed25519")


def token_key_id_of(token: str) -> str | None:
    """Read the `kid` from a token's header. The value is not verified. Raises AuthFailed."""
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.InvalidTokenError:
        raise AuthFailed("neither a JSON Web Token nor a Tickcast secret") from None
    return kid if isinstance(kid, str) else None


def verify_token(
    token: str, key: VerifyingKey, *, audience: str | None = None, issuer: str | None = None
) -> Grant:
    """Verify a token and return the rights that it gives.

    Args:
        audience, issuer: `aud` must contain the audience, and `iss` must be the issuer; None
            accepts any.

    Raises:
        AuthFailed: the token is not signed with the key, has expired, is not valid yet, is meant
            for another audience, comes from another issuer, or has invalid claims.
    """
    required = ["exp", *(["aud"] if audience else []), *(["iss"] if issuer else [])]
    try:
        claims = jwt.decode(
            token,
            key.key,
            algorithms=list(key.algorithms),
            audience=audience,
            issuer=issuer,
            options={"require": required, "verify_aud": audience is not None},
        )
    except jwt.ExpiredSignatureError:
        raise AuthFailed("the token has expired") from None
    except jwt.MissingRequiredClaimError as error:
        raise AuthFailed(f"the token has no {error.claim}") from None
    except jwt.InvalidAudienceError:
        raise AuthFailed("the token is for another audience") from None
    except jwt.InvalidIssuerError:
        raise AuthFailed("the token is from another issuer") from None
    except jwt.ImmatureSignatureError:
        raise AuthFailed("the token is not valid yet") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        raise AuthFailed("the token is not signed as it must be") from None
    return _grant(claims)


def _grant(claims: Mapping[str, Any]) -> Grant:
    limits = {name: _texts(name, claims[name]) for name in _CLAIMS if name in claims}
    entitlements = Entitlements(**limits)
    for fault in entitlements.faults():
        raise AuthFailed(f"the token's {fault}")
    maximum = claims.get("max_connections")
    # JSON's `true` is an int in Python.
    if maximum is not None and (type(maximum) is not int or maximum < 1):
        raise AuthFailed("the token's max_connections is not an integer of at least 1")
    publishes = claims.get("publish", False)
    if not isinstance(publishes, bool):
        raise AuthFailed("the token's publish is neither true nor false")
    # The subject becomes part of a Redis key, which can't contain lone surrogates.
    subject = str(claims.get("sub", ""))[:_SUBJECT_MAX].encode("utf-8", "replace").decode()
    try:
        expires_s = float(claims["exp"])
    except OverflowError:
        raise AuthFailed("the token's exp is not a time") from None
    return Grant(Proof.TOKEN, subject, entitlements, maximum, expires_s, publishes)


def _texts(name: str, value: object) -> tuple[str, ...]:
    """Parse a claim that is a list of strings or one comma-separated string."""
    if isinstance(value, str):
        return tuple(each.strip() for each in value.split(",") if each.strip())
    if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise AuthFailed(f"the token's {name} is not a list of strings")


class RemoteKeys:
    """An issuer's keys by id. Fetching blocks, so call `fetch` in a thread, one call at a time.

    Raises InvalidSettings unless the URL is https, or http on this machine.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        is_local = is_loopback(parts.hostname or "")
        schemes = ("https", "http") if is_local else ("https",)
        if not parts.hostname or parts.scheme not in schemes:
            raise InvalidSettings(f"jwks_url: {url!a} is not an https:// URL")
        self._url = url
        # Redirects could lead from https to http. A proxy can't reach our loopback address.
        handlers: list[BaseHandler] = [_NoRedirects()]
        if is_local:
            handlers.append(ProxyHandler({}))
        self._opener = build_opener(*handlers)
        self._keys: dict[str | None, VerifyingKey] = {}
        self._fetched_s = self._tried_s = -_KEPT_S

    def cached(self, kid: str | None) -> VerifyingKey | None:
        """A key from the cache; None if the keys must be fetched."""
        if time.monotonic() - self._fetched_s > _KEPT_S:
            return None
        return self._find(kid)

    def fetch(self, kid: str | None) -> VerifyingKey:
        """Return a key. If it is not known, fetch all keys, at most once in `_AGAIN_S`.

        Raises AuthFailed if there is no key with that id.
        """
        key = self.cached(kid)
        if key is None and time.monotonic() - self._tried_s >= _AGAIN_S:
            self._tried_s = time.monotonic()
            self._fetch()
        # If the issuer can't be reached, outdated keys are better than none.
        if key is None and (key := self._find(kid)) is None:
            raise AuthFailed("the token is signed with a key that its issuer does not publish")
        return key

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
            if each.public_key_use in (None, "sig"):
                with contextlib.suppress(InvalidSettings):  # A set may contain other kinds of keys.
                    keys[each.key_id] = for_public_key(each.key)
        # At once, because the event loop's thread reads them.
        self._keys, self._fetched_s = keys, time.monotonic()

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


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """Treat every redirect as an error."""
